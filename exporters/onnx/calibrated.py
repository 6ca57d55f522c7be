"""GPTQ: codes chosen column by column, the error of each made good by the columns behind it, as a text weighs them.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2023), with the
scale of a block taken from its weights as they are when its first column is reached. The inputs of every product come
from the graph itself, run in onnxruntime on the text, each token's as long as any other's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from exporters.onnx.blockwise import Blocks, coded, in_blocks, ranges_of
from exporters.onnx.rewrite import rewritten
from exporters.onnx.session import OnnxModel
from exporters.options import IdRows
from passes.errors import DataError

WINDOWS, TOKENS = 16, 512
"""So many windows of so many tokens are read of the text, evenly spaced."""

DAMPING = 0.01
"""Of the mean of the diagonal, added to it: columns that the text hardly moves must not be moved without limit."""

LAZY = 128
"""Columns whose errors are made good at once in those behind them."""


def grams(path: Path, names: Iterable[str], text: Path | IdRows) -> dict[str, torch.Tensor]:
    """X^T X (inputs, inputs) of the values of these names, X being all rows that the graph gives them on the text.

    Each row of X is scaled to the same length. Some tokens, most often the first, have hidden activations thousands of
    times those of all others (Sun et al., "Massive Activations in Large Language Models", 2024), and codes would be
    chosen for them alone: SmolLM2's perplexity was then higher than by the nearest codes (``docs/onnx.md``).

    Raises DataError for a text that is too short for one window.
    """
    wanted = tuple(dict.fromkeys(names))

    def shown(model: ir.Model) -> None:
        values = {value.name: value for node in model.graph for value in node.outputs}
        for name in wanted:
            values[name].type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(values[name])

    with rewritten(path, shown) as new:
        graph = OnnxModel(new)
        found: dict[str, torch.Tensor] = {}
        for window in windows(path.parent, text) if isinstance(text, Path) else spread(text):
            answer = graph(_feeds(graph, window))
            for name in wanted:
                rows = torch.nn.functional.normalize(answer[name].flatten(0, -2), dim=-1)
                found[name] = found.get(name, 0) + rows.T @ rows
        return found


def _feeds(graph: OnnxModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """One text (1, tokens) on an empty cache."""
    positions = torch.arange(ids.shape[1])[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}
    caches = [name for name in graph.shapes if name.startswith("past_key_values")]
    return {name: each for name, each in given.items() if name in graph.shapes} | graph.empty(caches, 1)


def windows(folder: Path, text: Path) -> Iterator[torch.Tensor]:
    """Token ids (1, tokens) of the text, by the tokenizer in the folder, no longer than its model reads."""
    ids = token_ids(AutoTokenizer.from_pretrained(folder), text)
    context = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "max_position_embeddings", None)
    tokens = min(TOKENS, len(ids), context or TOKENS)
    starts = np.linspace(0, len(ids) - tokens, min(WINDOWS, len(ids) // tokens)).astype(int)
    for start in starts:
        yield ids[None, start : start + tokens]


def spread(rows: IdRows) -> Iterator[torch.Tensor]:
    """Token ids (1, tokens) of evenly spaced rows, as many as a text would give."""
    count = min(len(rows), max(1, WINDOWS * TOKENS // len(rows[0]["input_ids"])))
    for index in np.linspace(0, len(rows) - 1, count).astype(int):
        yield torch.as_tensor(rows[int(index)]["input_ids"])[None]


def token_ids(tokenizer: PreTrainedTokenizerBase, text: Path) -> torch.Tensor:
    """The text in tokens (tokens,). Raises DataError if it is no UTF-8 or too short."""
    try:
        ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8"), verbose=False).input_ids)
    except UnicodeDecodeError as error:
        raise DataError(f"{text}, a calibration text, is no UTF-8 ({error.reason}): convert it") from error
    if len(ids) < 2:
        raise DataError(f"{text} has {len(ids)} tokens, and int4 is calibrated on windows of up to {TOKENS}: give more")
    return ids


def solved(weight: torch.Tensor, gram: torch.Tensor, bits: int, block: int, *, symmetric: bool) -> Blocks:
    """The matrix (rows, columns) in codes that leave its products on the text as they were, as well as they can.

    A row keeps the nearest codes where these leave them nearer, as they may where the text hardly moves it.
    """
    rows, columns = weight.shape
    spare = -columns % block
    left = torch.nn.functional.pad(weight.float(), (0, spare)).clone()
    factor = _factor(torch.nn.functional.pad(gram, (0, spare, 0, spare)))
    count = left.shape[1] // block
    codes = torch.empty(rows, count, block)
    scales, zeros = torch.empty(rows, count), torch.empty(rows, count)
    step = max(block, LAZY)
    for start in range(0, left.shape[1], step):
        end = min(start + step, left.shape[1])
        errors = torch.zeros(rows, end - start)
        for column in range(start, end):
            at, within = divmod(column, block)
            if not within:
                scale, zero = ranges_of(left[:, column : column + block], bits, symmetric=symmetric)
                scales[:, at], zeros[:, at] = scale[:, 0], zero[:, 0]
            code = coded(left[:, column], bits, scales[:, at], zeros[:, at])
            codes[:, at, within] = code
            error = (left[:, column] - (code - zeros[:, at]) * scales[:, at]) / factor[column, column]
            left[:, column + 1 : end] -= error[:, None] * factor[column, column + 1 : end]
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    found = Blocks(
        codes=codes.to(torch.uint8),
        scales=scales,
        zeros=None if symmetric else zeros.to(torch.uint8),
        bits=bits,
        columns=columns,
    )
    nearest = in_blocks(weight, bits, block, symmetric=symmetric, search=False)
    worse = lengths_on(weight - found.values, gram) > lengths_on(weight - nearest.values, gram)
    return _rows_of(worse, nearest, found)


def lengths_on(rows: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Lengths (rows,) of the products of rows (rows, inputs) with the inputs that ``gram`` (inputs, inputs) is of."""
    return ((rows @ gram) * rows).sum(-1).clamp_min(0).sqrt()


def _rows_of(chosen: torch.Tensor, one: Blocks, other: Blocks) -> Blocks:
    """The rows of ``one`` that are chosen, else those of the other."""
    zeros = None
    if one.zeros is not None and other.zeros is not None:
        zeros = torch.where(chosen[:, None], one.zeros, other.zeros)
    codes = torch.where(chosen[:, None, None], one.codes, other.codes)
    scales = torch.where(chosen[:, None], one.scales, other.scales)
    return replace(other, codes=codes, scales=scales, zeros=zeros)


def _factor(gram: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the damped inverse; a column that the text never moves stands for itself."""
    damped = gram.double().clone()
    diagonal = damped.diagonal()
    diagonal += torch.where(diagonal == 0, 1.0, DAMPING * diagonal.mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.float()
