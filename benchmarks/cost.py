"""Seconds and peak memory of ranking, compensating and tuning, against plain LoRA with peft and the Trainer.

    python benchmarks/cost.py [--size small|1b|8b] [--steps N] [--batch N] [--context N] [--dtype float32] [--turns N]

    python benchmarks/cost.py --model DIR --data FILE [--ratio R] [--steps N] [--samples N] [--onnx]

A Llama of random weights and random tokens: what is measured is time. Each way runs in a process of its own, one after
another, in turns, on the GPU if there is one. ``8b`` in bfloat16 is for an 80 GB GPU.

With ``--model`` it is one whole run of ``lpc compress`` on a model folder and a text: rank, compensate, tune and all
in seconds, in processor seconds (on a shared machine these say more) and in peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cost_run import model_page, run_model
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from exporters.latency.machine import Machine
from lpc.pipelines import BEFORE_TUNING
from lpc.report import table
from lpc.versions import versions
from passes.compensation import CompensatePass
from passes.decide import ScorePass
from passes.options import LoraOptions, Schedule, ScoreOptions, Target, TuneOptions
from passes.pipeline import Pass, Pipeline, Program
from passes.pipeline.records import measured
from passes.trace import TracePass
from passes.tuning import AttachPass, TunePass, settled

OUT = Path(__file__).parent / "out"
TARGET = Target(ratio=0.3)
SIZES: Mapping[str, Mapping[str, int]] = {
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 4096},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256},
}
HEADS: Mapping[str, Mapping[str, int]] = {
    "small": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "1b": {"num_attention_heads": 32, "num_key_value_heads": 8},
    "8b": {"num_attention_heads": 32, "num_key_value_heads": 8},
}
PLAIN, DEFAULT = "LoRA alone", "default"
WAYS: Mapping[str, TuneOptions] = {
    DEFAULT: TuneOptions(),
    "default, not distilled": TuneOptions(distill=None),
    "loraprune, distilled": TuneOptions(criterion="loraprune"),
    "loraprune": TuneOptions(criterion="loraprune", distill=None),
}
"""``LoRA alone`` is no way of lpc's: peft's adapters, trained by the Trainer."""


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Random sequences [context]."""

    def __init__(self, count: int, context: int, vocabulary: int) -> None:
        self._ids = torch.randint(0, vocabulary, (count, context), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._ids[index], "labels": self._ids[index]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--steps", type=int, help="default: 40, with --model 20")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--way", help="run this one here and print its numbers")
    parser.add_argument("--model", help="a model folder: measure a whole run on it")
    parser.add_argument("--data", help="the text for it")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--onnx", action="store_true", help="write the ONNX package as well")
    arguments = parser.parse_args()
    if arguments.model:
        whole_run(arguments)
        return
    arguments.steps = arguments.steps or 40
    if arguments.way:
        print(json.dumps(run(arguments)))
        return
    names = [PLAIN, *WAYS]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(arguments.turns):
        for name in names if turn % 2 == 0 else reversed(names):
            found[name].append(_apart(name))
            print(f"turn {turn + 1}: {name}", file=sys.stderr, flush=True)
    _write(arguments.size, {"ways": found}, _page(found, arguments), arguments)


def whole_run(arguments: argparse.Namespace) -> None:
    """One run on a model folder, in this process."""
    if not arguments.data:
        raise SystemExit("--model needs --data: a text file to rank, tune and measure on")
    found = run_model(arguments)
    _write(Path(arguments.model).resolve().name, {"run": found}, model_page(found, arguments), arguments)


def _write(name: str, found: Mapping[str, Any], text: str, arguments: argparse.Namespace) -> None:
    OUT.mkdir(exist_ok=True)
    stem = f"cost-{name}-{'cuda' if torch.cuda.is_available() else 'cpu'}"
    values = {"options": vars(arguments), "machine": asdict(Machine.here()), "versions": versions(), **found}
    (OUT / f"{stem}.json").write_text(json.dumps(values, indent=1) + "\n")
    (OUT / f"{stem}.md").write_text(text)
    print(text)


def _apart(name: str) -> dict[str, Any]:
    """A way's numbers, from a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--way", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak memory of each pass of one way."""
    config = LlamaConfig(**SIZES[arguments.size], **HEADS[arguments.size], tie_word_embeddings=True)
    config.max_position_embeddings = arguments.context
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(getattr(torch, arguments.dtype))
    if torch.cuda.is_available():
        model = model.to("cuda")
    count = max(arguments.samples, arguments.steps * arguments.batch)
    data = Tokens(count, arguments.context, config.vocab_size)
    ready = Pipeline([TracePass(), AttachPass(LoraOptions())])(Program.start(model)).program
    if arguments.way == PLAIN:
        return _plain(ready, data, arguments)
    done = Pipeline(_passes(arguments, ready, data))(ready).program
    records = [record for record in done.history if record.name in ("score", "compensate", "tune")]
    return {record.name: {"seconds": record.seconds, "bytes": record.peak_memory_bytes} for record in records}


def _passes(arguments: argparse.Namespace, ready: Program, data: Tokens) -> list[Pass]:
    tune = WAYS[arguments.way]
    options = TuneOptions(
        steps=arguments.steps, batch_size=arguments.batch, criterion=tune.criterion, distill=tune.distill
    )
    tune = settled(options, ready.traced)
    if isinstance(tune.schedule, Schedule) and not tune.one_shot:
        return [TunePass(TARGET, data, tune)]
    score = ScoreOptions(criterion=tune.criterion, samples=arguments.samples, batch_size=arguments.batch)
    solve = CompensatePass(data, BEFORE_TUNING, keep_originals=True)
    return [ScorePass(TARGET, data, score), solve, TunePass(TARGET, data, tune)]


def _plain(ready: Program, data: Tokens, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same adapters on the same data, without lpc."""
    with tempfile.TemporaryDirectory() as folder, measured() as measurement:
        options = TrainingArguments(
            output_dir=folder,
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.batch,
            learning_rate=1e-3,
            use_cpu=not torch.accelerator.is_available(),
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        Trainer(model=ready.model, args=options, train_dataset=data).train()
    return {"tune": {"seconds": measurement.seconds, "bytes": measurement.peak_memory_bytes}}


def _page(found: Mapping[str, Sequence[Mapping[str, Any]]], arguments: argparse.Namespace) -> str:
    """A line a way; each ratio is of the same turn."""
    lines = []
    for name, turns in found.items():
        ratios = [t["tune"]["seconds"] / p["tune"]["seconds"] for t, p in zip(turns, found[PLAIN], strict=True)]
        parts = [_middle(turns, part) for part in ("score", "compensate")]
        tune = median(turn["tune"]["seconds"] for turn in turns) / arguments.steps
        spread = f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        peak = max(part["bytes"] for turn in turns for part in turn.values()) / 2**30
        lines.append([name, *parts, f"{tune:.3f}", spread, f"{peak:.2f}"])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else Machine.here().processor
    head = f"{arguments.size}, {arguments.dtype}, {arguments.batch} × {arguments.context} tokens a step, "
    head += (
        f"{arguments.samples} sequences ranked, {arguments.turns} turns, {device}, {torch.get_num_threads()} threads"
    )
    columns = ["way", "rank, s", "compensate, s", "tune, s a step", "of LoRA alone", "peak GiB"]
    return f"{head}\n\n{table(columns, lines)}\n"


def _middle(turns: Sequence[Mapping[str, Any]], part: str) -> str:
    seconds = [turn[part]["seconds"] for turn in turns if part in turn]
    return f"{median(seconds):.1f}" if seconds else ""


if __name__ == "__main__":
    main()
