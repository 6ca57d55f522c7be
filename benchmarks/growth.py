"""Processor seconds and memory of each stage as a model gets deeper: Llama shapes of 0.1 to 4 billion parameters.

    python benchmarks/growth.py [--billions 0.1 0.5 1 2 4] [--width 1536] [--samples 4] [--context 64]

The width stays and layers are added, so a stage whose cost is linear in layers has slope 1 in the last line. Weights
are random, in bfloat16; each size runs in a process of its own, one after another. ``benchmarks/out/growth-WIDTH.json``
has all of it, kept as it comes, so an interrupted run goes on; ``growth-WIDTH.md`` has the tables. Memory is what is
resident at most, without what was before the model was made.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from cost import Tokens
from transformers import LlamaConfig, LlamaForCausalLM

from exporters.hf import SavePass
from exporters.latency.machine import Machine
from lpc.pipelines import BEFORE_TUNING
from lpc.report import table
from lpc.versions import versions
from passes.compensation import CompensatePass
from passes.decide import DecidePass, ScorePass
from passes.options import LoraOptions, ScoreOptions, Target
from passes.pipeline import Pass, Program, RunContext
from passes.pipeline.records import measured
from passes.shrink import ShrinkPass
from passes.trace import TracePass
from passes.tuning import AttachPass, MergePass

OUT = Path(__file__).parent / "out"
STAGES = ("trace", "score", "rank", "compensate", "merge", "shrink", "save")
TARGET = Target(ratio=0.2)
HEAD = 64
VOCABULARY = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--billions", type=float, nargs="+", default=[0.1, 0.5, 1, 2, 4])
    parser.add_argument("--width", type=int, default=1536, help="hidden size; MLPs are 8/3 of it, in 256s")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--fresh", action="store_true", help="do not go on from what an earlier run measured")
    parser.add_argument("--one", type=float, help="measure this size here and print its numbers")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments)))
        return
    OUT.mkdir(exist_ok=True)
    shape = f"growth-{arguments.width}-{arguments.samples}x{arguments.context}"
    lines = OUT / f"{shape}.jsonl"
    if arguments.fresh:
        lines.unlink(missing_ok=True)
    done = {row["billions"]: row for row in map(json.loads, lines.read_text().splitlines())} if lines.exists() else {}
    for size in arguments.billions:
        if size not in done:
            done[size] = _apart(size)
            with lines.open("a") as file:
                file.write(json.dumps(done[size]) + "\n")
            print(f"{size} billion parameters: done", file=sys.stderr, flush=True)
    rows = [done[size] for size in sorted(arguments.billions)]
    machine = {"machine": asdict(Machine.here()), "versions": versions(), "options": vars(arguments)}
    stem = f"growth-{arguments.width}"
    (OUT / f"{stem}.json").write_text(json.dumps({**machine, "sizes": rows}, indent=1) + "\n")
    (OUT / f"{stem}.md").write_text(page(rows, arguments))
    print(page(rows, arguments))


def _apart(size: float) -> dict[str, Any]:
    """A size's numbers, from a process of its own, so that a peak is its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", str(size)]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))


def measure(size: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak memory of each stage on a model of so many billion parameters."""
    config = shape_of(size, arguments.width, arguments.context)
    before = psutil.Process().memory_info().rss
    found: dict[str, dict[str, float]] = {}
    with _stage("load", found, before):
        program = Program.start(random_model(config))
    data = Tokens(arguments.samples, arguments.context, VOCABULARY)
    run = RunContext(samples=arguments.samples, batch_size=1)
    solve = CompensatePass(data, BEFORE_TUNING, keep_originals=True)
    with tempfile.TemporaryDirectory() as folder:
        stages: tuple[tuple[str, Pass], ...] = (
            ("trace", TracePass()),
            ("attach", AttachPass(LoraOptions())),
            ("score", ScorePass(TARGET, data, ScoreOptions(criterion="loraprune"))),
            ("rank", ScorePass(TARGET, data, ScoreOptions(criterion="obs"))),
            ("compensate", solve),
            ("decide", DecidePass(TARGET, "obs", {})),
            ("merge", MergePass()),
            ("shrink", ShrinkPass()),
            ("save", SavePass(Path(folder) / "hf")),
        )
        for name, each in stages:
            with _stage(name, found, before):
                after = each(program, run).program
            program = program if name == "score" else after  # scores alone: the ranking below is what decides
            print(f"{size}: {name} {found[name]['processor']:.1f} s", file=sys.stderr, flush=True)
            del after
    return {
        "billions": size,
        "layers": config.num_hidden_layers,
        "parameters": parameters_of(config),
        "weight_bytes": 2 * parameters_of(config),
        "stages": found,
    }


@contextmanager
def _stage(name: str, found: dict[str, dict[str, float]], before: int) -> Iterator[None]:
    """Notes a stage's seconds, and the bytes that it has at most beside those ``before``."""
    began = time.process_time()
    with measured() as measurement:
        yield
    found[name] = {
        "seconds": measurement.seconds,
        "processor": time.process_time() - began,
        "bytes": measurement.peak_memory_bytes - before,
    }


def shape_of(size: float, width: int, context: int) -> LlamaConfig:
    """The Llama of that width whose depth comes nearest to so many billion parameters."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=round(width * 8 / 3 / 256) * 256,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD // 4,
        num_hidden_layers=1,
        vocab_size=VOCABULARY,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    layer = parameters_of(config) - VOCABULARY * width
    config.num_hidden_layers = max(round((size * 1e9 - VOCABULARY * width) / layer), 1)
    return config


def parameters_of(config: LlamaConfig) -> int:
    """Parameters, tied ones once, by building nothing."""
    with torch.device("meta"):
        return sum(p.numel() for p in LlamaForCausalLM(config).parameters())


def random_model(config: LlamaConfig) -> LlamaForCausalLM:
    """Weights drawn quickly, in bfloat16, scaled so that activations neither vanish nor overflow."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            bound = math.sqrt(3 / parameter.shape[-1])
            parameter.fill_(1) if "norm" in name else parameter.uniform_(-bound, bound, generator=generator)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def page(rows: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> str:
    """Processor seconds and peak memory a stage and size; a slope is that of log over log layers."""
    text = (
        f"Llama of width {arguments.width}, bfloat16, {arguments.samples} x {arguments.context} tokens ranked and "
        f"compensated on, {torch.get_num_threads()} threads, {Machine.here().processor}"
    )
    seconds = _table(rows, "processor", ".1f", 1.0)
    held = _table(rows, "bytes", ".2f", 2**30)
    return f"{text}\n\nProcessor seconds by stage:\n\n{seconds}\n\nGiB at most:\n\n{held}\n"


def _table(rows: Sequence[Mapping[str, Any]], value: str, form: str, unit: float) -> str:
    """A line a size, and one of the slopes."""
    lines = []
    for row in rows:
        size = f"{row['parameters'] / 1e9:.2f}B, {row['layers']}"
        weights = f"{row['weight_bytes'] / 2**30:.2f}"
        lines.append([size, *(f"{row['stages'][name][value] / unit:{form}}" for name in STAGES), weights])
    if len(rows) > 1:
        lines.append(["slope", *(f"{slope(rows, name, value):.2f}" for name in STAGES), ""])
    return table(["parameters, layers", *STAGES, "weights GiB"], lines)


def slope(rows: Sequence[Mapping[str, Any]], stage: str, value: str) -> float:
    """By least squares: 1 is linear in layers."""
    x = [math.log(row["layers"]) for row in rows]
    y = [math.log(max(row["stages"][stage][value], 1e-3)) for row in rows]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - middle_x) ** 2 for a in x)
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread


if __name__ == "__main__":
    main()
