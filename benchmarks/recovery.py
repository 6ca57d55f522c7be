"""How to tune what is left: one start, ranked and compensated once, tuned in many ways; what each does to other text.

    LPC_MODELS=DIR python benchmarks/recovery.py [--models smollm2] [--ratio 0.2] [--steps 20] [--only WAY] [--rows 0]

The start is the default's: units ranked by ``obs`` on 128 sequences, a quarter of which the model wrote itself, removed
and compensated. Each way then takes ``--steps`` of 8 × 256 tokens from there. Measured, in the model's dtype, on 16
windows of 512 tokens of WikiText-2 test (the kind that is tuned on), TinyStories and LAMBADA (other kinds): the loss
less the dense model's, in nats, and KL(dense ‖ pruned) a token; with ``--rows`` also acc_norm of six tasks.
Resumable: a line a way in benchmarks/out/recovery-MODEL.jsonl. Seconds are of the tuning alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from quality_real import LAMBADA, STORIES, WIKITEXT, Real, load, zero_shot
from torch.utils.data import Dataset
from transformers import PreTrainedModel

import lpc
from lpc.data import BlockDataset, Row
from lpc.data.text import token_sequences
from lpc.generation import GeneratePass, Mixed, OwnText, Script
from lpc.pipelines import BEFORE_TUNING
from lpc.report import table
from passes.compensation import CompensatePass
from passes.decide import DecidePass, ScorePass
from passes.models import heldout_loss
from passes.options import ONE_SHOT, DistillOptions, LoraOptions, ScoreOptions, Target, TuneOptions
from passes.pipeline import Pipeline, Program, RunContext, plain
from passes.shrink import ShrinkPass
from passes.trace import TracePass
from passes.tuning import AttachPass, MergePass, TunePass

OUT = Path(__file__).parent / "out"
WINDOWS, OWN, LENGTH = 16, 160, 256
BASE = TuneOptions(criterion="obs", schedule=ONE_SHOT)


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the start is tuned: peak rate, and the share and the temperature of the model's own text."""

    rate: float = 0.00111
    tune: TuneOptions = BASE
    lora: LoraOptions = LoraOptions()
    share: float = 0.25
    heat: float = 1.0


PURE = replace(BASE, distill=DistillOptions(weight=1.0))
MUON = replace(BASE, optimizer="muon")

WAYS: Mapping[str, Way] = {
    "rate 0.0011": Way(),
    "rate 0.0022": Way(rate=0.00222),
    "rate 0.0033": Way(rate=0.00333),
    "all own": Way(share=1.0),
    "half own": Way(share=0.5),
    "w = 1": Way(tune=PURE),
    "w = 1, half own": Way(tune=PURE, share=0.5),
    "w = 1, half own, rate 0.0022": Way(tune=PURE, share=0.5, rate=0.00222),
    "a quarter own at T = 0.7": Way(heat=0.7),
    "half own at T = 0.7": Way(share=0.5, heat=0.7),
    "half own at T = 0.7, rate 0.0022": Way(share=0.5, heat=0.7, rate=0.00222),
    "all own at T = 0.7": Way(share=1.0, heat=0.7),
    "h = 0": Way(tune=replace(BASE, distill=DistillOptions(hidden_weight=0.0))),
    "h = 20": Way(tune=replace(BASE, distill=DistillOptions(hidden_weight=20.0))),
    "rank 128": Way(lora=LoraOptions(rank=128)),
    "muon": Way(tune=MUON),
    "muon, rate 0.0033": Way(tune=MUON, rate=0.00333),
}
"""Where nothing else is said: rate 0.0011, a quarter own, w = 0.5, h = 5, rank 32, AdamW."""


def main() -> None:
    """Tune what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="smollm2")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", default="")
    parser.add_argument("--rows", type=int, default=0, help="of each zero-shot task; 0: none")
    arguments = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    path = OUT / f"recovery-{arguments.models}.jsonl"
    key = {name: getattr(arguments, name) for name in ("ratio", "steps", "rows")}
    wanted = [name for name in WAYS if re.search(arguments.only, name)]
    missing = [name for name in wanted if not any({**key, "way": name}.items() <= row.items() for row in read(path))]
    if missing:
        bench = Bench(load(arguments.models), arguments.models, arguments.ratio)
        for name in missing:
            row = {**key, "way": name, **bench.tuned(WAYS[name], arguments.steps, arguments.rows)}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    text = summary([row for row in read(path) if row["ratio"] == arguments.ratio])
    (OUT / f"recovery-{arguments.models}.md").write_text(text)
    print(text)


def read(path: Path) -> list[dict[str, Any]]:
    """The finished ways."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Bench:
    """A model's start, made once, its data, and what the dense model computes on the texts."""

    def __init__(self, real: Real, name: str, ratio: float) -> None:
        self._real, self._name, self._target = real, name, Target(ratio=ratio)
        self._texts = {
            name: BlockDataset(data.blocks[:WINDOWS], data.labels[:WINDOWS]) for name, data in real.measured.items()
        }
        found = token_sequences([real.text], real.tokenizer, sequence_length=LENGTH)
        self._given = BlockDataset(found.tensor[64:], found.labels[64:])
        dense = lpc.load(real.folder)
        self._dense = {name: log_probabilities(dense, data) for name, data in self._texts.items()}
        self._losses = {name: heldout_loss(dense, data, 4) for name, data in self._texts.items()}
        del dense
        self._start = self._ranked()

    def tuned(self, way: Way, steps: int, rows: int) -> dict[str, Any]:
        """Tune a copy of the start; what that leaves, and the seconds of tuning."""
        begin = replace(self._start, model=copy.deepcopy(self._start.model))
        options = replace(way.tune, steps=steps, learning_rate=way.rate)
        data = self._data(way.share, way.heat)
        begin = Pipeline([AttachPass(way.lora)])(begin.expecting_itself(), RunContext()).program
        begun, cpu = time.perf_counter(), time.process_time()
        program = Pipeline([TunePass(self._target, data, options)])(begin, RunContext()).program
        spent = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
        finish = Pipeline([DecidePass(self._target, "obs"), MergePass(), ShrinkPass()])
        model = finish(program, RunContext()).program.model
        assert isinstance(model, PreTrainedModel)
        rises = {name: heldout_loss(model, data, 4) - self._losses[name] for name, data in self._texts.items()}
        apart = {name: divergence(model, data, self._dense[name]) for name, data in self._texts.items()}
        tasks = {"tasks": zero_shot(self._real, model, rows)} if rows else {}
        return {**spent, "rise": rises, "kl": apart, **tasks, "options": plain(way), "at": time.strftime("%Y-%m-%d")}

    def _ranked(self) -> Program:
        program = Program.start(lpc.load(self._real.folder))
        data = self._data(0.25, 1.0)
        ranked = [
            TracePass(),
            ScorePass(self._target, data, ScoreOptions(criterion="obs")),
            CompensatePass(data, BEFORE_TUNING, keep_originals=True),
        ]
        return Pipeline(ranked)(program, RunContext()).program

    def _data(self, share: float, heat: float) -> Dataset[Row]:
        if not share:
            return self._given
        own = OwnText(Script.of(lpc.load(self._real.folder), self._real.tokenizer), length=LENGTH, count=OWN)
        place = OUT / f"own-{self._name}-{heat:g}.pt"
        if not place.exists():
            drawn = GeneratePass.of(own, OWN, 604_800, heat)
            drawn(Program.start(lpc.load(self._real.folder)), RunContext())
            torch.save(own.tokens, place)
        own.fill(torch.load(place, weights_only=True))
        return own if share == 1 else Mixed(self._given, own, share)


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, data: BlockDataset) -> torch.Tensor:
    """log softmax of the logits, ``[windows, tokens, vocabulary]``, in half precision."""
    return torch.cat([model(row[None]).logits.float().log_softmax(-1).half() for row in data.blocks])


@torch.no_grad()
def divergence(model: torch.nn.Module, data: BlockDataset, dense: torch.Tensor) -> float:
    """KL(dense ‖ model), the mean over all tokens, in nats."""
    found = []
    for row, said in zip(data.blocks, dense, strict=True):
        teacher, student = said.float(), model(row[None]).logits[0].float().log_softmax(-1)
        found.append(float((teacher.exp() * (teacher - student)).sum(-1).mean()))
    return mean(found)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a way, by steps, the least distance on other text first."""
    names = (WIKITEXT, STORIES, LAMBADA)
    ordered = sorted(rows, key=lambda row: (row["steps"], row["kl"][STORIES] + row["kl"][LAMBADA]))
    lines = [
        [
            row["way"],
            str(row["steps"]),
            *(f"{row['rise'][name]:.3f}" for name in names),
            *(f"{row['kl'][name]:.3f}" for name in names),
            f"{mean(value for value, _ in row['tasks'].values()):.3f}" if "tasks" in row else "",
            f"{row['cpu_seconds']:.0f}",
        ]
        for row in ordered
    ]
    head = [*(f"rise, {name}" for name in names), *(f"KL, {name}" for name in names), "acc_norm", "processor s"]
    return table(["way", "steps", *head], lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
