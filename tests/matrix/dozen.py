"""Model types taken at random, compressed with all defaults in fp32 and bf16, with the ONNX package.

    python tests/matrix/dozen.py --seed 1 [--count 12] [--mapping causal ...] [--only TYPE ...] [--seconds 300]

Types that lpc describes are left out. Each is a tiny model of the type's own default configuration, whose options
(tied embeddings, biases, fewer KV heads) are drawn too, in a process of its own. A line each: right with the worst
difference of onnxruntime, refused with the reason, or wrong. Exits 1 if one is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
for place in (ROOT, ROOT / "tests", ROOT / "tests" / "passes", ROOT / "tests" / "matrix"):
    sys.path.insert(0, str(place))

import torch
import transformers
from all_models import MAPPINGS, classes, completed, default_config
from conftest import build_tokenizer
from default_way import DTYPES, RATIO, STEPS, story
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

import lpc
from passes.discovery import describe, random_model, small_model
from passes.errors import LpcError
from passes.families import FAMILIES
from passes.models import Task, task_of
from passes.trace import trace

WORDS, WIDE = 320, 512
CHANNELS = re.compile(r"intermediate|ffn|d_ff|mlp_dim|n_inner")
TOGGLED = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_qk_norm", "qkv_bias", "bias", "use_bias")


def drawn(mapping: list[str], seed: int, count: int) -> list[tuple[str, str, str]]:
    """So many model types that nobody described, a class each."""
    chance, by_type = random.Random(seed), dict[str, list[tuple[str, str, str]]]()
    for each in classes():
        if each[0] in mapping and each[1] not in FAMILIES:
            by_type.setdefault(each[1], []).append(each)
    return [chance.choice(by_type[name]) for name in chance.sample(sorted(by_type), count)]


def tiny(name: str, model_type: str, seed: int) -> tuple[Any, PreTrainedConfig]:
    """A class and a small configuration of it, with options drawn."""
    kind = getattr(transformers, name)
    config, _ = small_model(kind, completed(kind, default_config(kind, model_type)))
    chance, values = random.Random(f"{seed} {name}"), config.to_dict()
    changes = {key: chance.random() < 0.5 for key in TOGGLED if isinstance(values.get(key), bool)}
    more = {"vocab_size": WORDS} if isinstance(values.get("vocab_size"), int) else {}
    more |= {key: WIDE for key, value in values.items() if CHANNELS.search(key) and type(value) is int and value > 16}
    for each in ({**more, **changes}, more):
        try:
            found = type(config).from_dict({**values, **each})
            random_model(kind, found, seed=seed)
        except Exception:  # noqa: BLE001 - whatever a class raises for what it cannot have
            continue
        print(f"  {name} {each}", flush=True)
        return kind, found
    return kind, config


def data_for(model: Any, config: PreTrainedConfig) -> Any:
    """Texts for a language model and an embedding model; else rows."""
    task = task_of(model)
    if task is Task.CAUSAL_LM:
        return story()
    if task is Task.FEATURE_EXTRACTION:
        return [f"The cat number {i} sat on the mat, and {i % 7} dogs ran round tree {i % 5}." for i in range(80)]
    generator, rows = torch.Generator().manual_seed(0), []
    for index in range(24):
        length = 6 + index % 4
        row = {"input_ids": torch.randint(2, 256, (length,), generator=generator)}
        if task is Task.IMAGE_CLASSIFICATION:
            size, channels = config.image_size, config.num_channels
            height, width = (size, size) if isinstance(size, int) else size
            row = {"pixel_values": torch.randn(channels, height, width, generator=generator)}
        labels = 1 if task in (Task.IMAGE_CLASSIFICATION, Task.SEQUENCE_CLASSIFICATION) else length
        row["labels"] = torch.randint(0, 2 if labels == 1 else 256, (labels,), generator=generator)
        row["labels"] = row["labels"][0] if labels == 1 else row["labels"]
        rows.append(row)
    return rows


def outcome(name: str, model_type: str, dtype: str, seed: int) -> str:
    """One line of what becomes of it."""
    try:
        kind, config = tiny(name, model_type, seed)
        describe(config, kind)
        model = random_model(kind, config, seed=seed).to(DTYPES[dtype])
        stock = trace(model.config, model_type=type(model))
        own_code = all(len(width.counts) == 1 for width in stock.widths)
        tokenizer = build_tokenizer() if model.main_input_name == "input_ids" else None
        data, options = data_for(model, config), lpc.TraceOptions(custom_code=own_code)
        result = lpc.compress(model, data, RATIO, steps=STEPS, tokenizer=tokenizer, trace=options)
        with tempfile.TemporaryDirectory(prefix="lpc-dozen-") as folder:
            report = result.save(Path(folder) / "out")
    except LpcError as error:
        return f"refused: {type(error).__name__}: {error}"
    worst = {each.name: max((found.value for found in each.parity), default=0.0) for each in report.passes}
    how = f"{result.plan.criterion}{', custom code' if own_code else ''}"
    return f"right: shrink {worst['shrink']:.0e}, onnx {worst['export']:.0e} ({how})"


def apart(arguments: tuple[Any, ...], seconds: int) -> str:
    """The outcome, found in a child process that may take so long."""
    with tempfile.NamedTemporaryFile() as file:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            try:
                text = outcome(*arguments)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is this one's outcome
                Path(f"/tmp/dozen-{arguments[0]}-{arguments[2]}.txt").write_text(traceback.format_exc())
                text = f"wrong: {type(error).__name__}: {error}"
            Path(file.name).write_text(text)
            os._exit(0)
        os.waitpid(child, 0)
        return Path(file.name).read_text() or f"refused: it took more than {seconds} s of CPU time"


def main() -> None:
    """Draw, try, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--mapping", nargs="*", default=list(MAPPINGS), choices=MAPPINGS)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--dtype", nargs="*", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--seconds", type=int, default=300)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    found = drawn(asked.mapping, asked.seed, asked.count)
    if asked.only:
        found = [each for each in classes() if each[1] in asked.only and each[0] in asked.mapping]
    states = []
    for mapping, model_type, name in found:
        for dtype in asked.dtype:
            start = time.monotonic()
            text = apart((name, model_type, dtype, asked.seed), asked.seconds)
            states.append(text.partition(":")[0])
            print(f"{mapping} {model_type} {dtype} {time.monotonic() - start:.0f}s {text[:600]}", flush=True)
    print(json.dumps({state: states.count(state) for state in sorted(set(states))}))
    sys.exit("wrong" in states)


if __name__ == "__main__":
    main()
