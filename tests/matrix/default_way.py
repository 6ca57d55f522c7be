"""``lpc.compress`` with all its defaults on a tiny model, saved as it is by default: the numbers of its proofs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import zoo
from conftest import build_tokenizer

import lpc
from passes.trace import trace

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STEPS = 3
RATIO = 0.1


@dataclass(frozen=True)
class DefaultWay:
    """``criterion`` ranked the units; ``passes`` ran, without the measures.

    ``custom_code``: it was asked for, as the stock class can hold nothing smaller (BLOOM), which the defaults refuse.
    ``shrink`` and ``export`` are the worst relative differences of these two proofs; ``genai``: why GenAI cannot serve
    the package, None if it can.
    """

    criterion: str
    passes: tuple[str, ...]
    shrink: float
    export: float
    genai: str | None
    custom_code: bool = False


def by_default(name: str, dtype: str) -> DefaultWay:
    """Compress the model of a case, a tenth of it, in three steps, and save it. Raises LpcError."""
    model = zoo.build(name).to(DTYPES[dtype])
    text = zoo.ZOO[name].task == "causal-lm"
    data: Any = story() if text else rows_for(name)
    stock = trace(model.config, model_type=type(model))
    own_code = all(len(width.counts) == 1 for width in stock.widths)
    options = lpc.TraceOptions(custom_code=own_code)
    tokenizer = build_tokenizer() if text else None
    result = lpc.compress(model, data, RATIO, steps=STEPS, tokenizer=tokenizer, trace=options)
    with tempfile.TemporaryDirectory(prefix="lpc-default-") as folder:
        report = result.save(Path(folder) / "out")
    worst = {each.name: max((found.value for found in each.parity), default=0.0) for each in report.passes}
    exported: Any = next(each.report for each in report.passes if each.name == "export")
    return DefaultWay(
        criterion=result.plan.criterion or "",
        passes=tuple(name for name in worst if name != "measure"),
        shrink=worst["shrink"],
        export=worst["export"],
        genai=exported.no_genai if text else None,
        custom_code=own_code,
    )


def story() -> list[str]:
    """Text for 128 sequences of the tiny models' context, and some to hold out."""
    line = "The cat sat on the mat number {0}, and the dog ran {0} times round the tree. " * 6
    return [line.format(i) for i in range(50)]


def rows_for(name: str, count: int = 24) -> list[dict[str, torch.Tensor]]:
    """Random rows of different lengths; a prompt of two tokens has no labels."""
    task, generator = zoo.ZOO[name].task, torch.Generator().manual_seed(0)
    rows = []
    for index in range(count):
        length = 6 + index % 4
        row = {"input_ids": torch.randint(2, 256, (length,), generator=generator)}
        if task == "image-classification":
            row = {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": torch.tensor(index % 5)}
        elif task == "sequence-classification":
            row["labels"] = torch.tensor(index % 5)
        elif task == "question-answering":
            row |= {"start_positions": torch.tensor(index % 3), "end_positions": torch.tensor(3)}
        else:
            high = 5 if task == "token-classification" else 256
            row["labels"] = torch.randint(0, high, (length,), generator=generator)
            row["labels"][:2] = -100
        rows.append(row)
    return rows
