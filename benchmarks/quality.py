"""Held-out perplexity: LoRAPrune against masks that get the same number of LoRA steps. Resumable.

    python benchmarks/quality.py [--models a,b] [--ratios 0.3,0.5] [--seeds 0,1,2] [--steps N]

A cell is (model, ratio, method, seed). Every cell of a model sees the same sequences in the same order (given the
seed), the same number of optimizer steps and the same learning rate; the methods differ in how units are ranked
and when they go. The better of a baseline's two schedules is what LoRAPrune must beat.
Held-out text is never scored or tuned on. Finished cells are read back from
``benchmarks/out/quality-MODEL.json``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from exporters.checkpoint import reload
from lpc.data import BlockDataset, token_sequences
from lpc.manifest import versions
from lpc.perplexity import token_perplexity
from lpc.report import table
from lpc.source import find_tokenizer
from passes.attach import AttachPass
from passes.decide import DecidePass
from passes.infra import Sequential
from passes.merge import MergePass
from passes.program import Program
from passes.schedule import Schedule
from passes.shrink import ShrinkPass
from passes.target import Target
from passes.trace import TracePass
from passes.tune import TuneOptions, TunePass

OUT = Path(__file__).parent / "out"
ONE_SHOT = Schedule(warmup=0.05, cooldown=0.95)


@dataclass(frozen=True)
class Corpus:
    """A model and its texts; ``length`` is the tokens a sequence, ``heldout`` how many sequences are evaluated."""

    model: str
    train: str
    heldout: str
    length: int
    train_sequences: int
    heldout_sequences: int
    steps: int


CORPORA = {
    "stories260K": Corpus(
        "stories260K",
        "text/tinystories/tinystories_sample_2MiB.txt",
        "text/tinystories/tinystories_heldout_decoded.txt",
        length=128,
        train_sequences=4000,
        heldout_sequences=400,
        steps=200,
    ),
    "wikitext-llama": Corpus(
        "wikitext-llama",
        "text/wikitext-2/train.txt",
        "text/wikitext-2/valid.txt",
        length=128,
        train_sequences=4000,
        heldout_sequences=400,
        steps=100,
    ),
}

METHODS: dict[str, tuple[str, Schedule]] = {
    "loraprune": ("loraprune", Schedule()),
    "magnitude, progressive": ("magnitude", Schedule()),
    "magnitude, one-shot": ("magnitude", ONE_SHOT),
    "random, progressive": ("random", Schedule()),
    "random, one-shot": ("random", ONE_SHOT),
}


@dataclass(frozen=True)
class Loaded:
    """A corpus in memory: the dense model, and sequences [n, length]."""

    model: PreTrainedModel
    train: torch.Tensor
    heldout: torch.Tensor


def load(corpus: Corpus) -> Loaded:
    """Read a corpus; exits with a plain sentence when the shared data are absent."""
    models = Path(os.environ.get("LPC_MODELS", "../shared/models"))
    data = Path(os.environ.get("LPC_DATA", "../shared/data"))
    for path in (models / corpus.model, data / corpus.train, data / corpus.heldout):
        if not path.exists():
            sys.exit(f"{path} is absent; set LPC_MODELS and LPC_DATA to where the models and texts are")
    tokenizer = find_tokenizer(models / corpus.model)
    assert tokenizer is not None
    return Loaded(
        reload(models / corpus.model),
        sequences(data / corpus.train, tokenizer, corpus.length, corpus.train_sequences),
        sequences(data / corpus.heldout, tokenizer, corpus.length, corpus.heldout_sequences),
    )


def sequences(path: Path, tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> torch.Tensor:
    """The first ``count`` sequences of a text file."""
    return token_sequences(path, tokenizer, sequence_length=length).tensor[:count]


def cell(loaded: Loaded, ratio: float, method: str, options: TuneOptions) -> dict[str, float]:
    """Compress once; held-out perplexity of the shrunk model, achieved ratio and seconds."""
    start = time.perf_counter()
    target = Target(ratio=ratio)
    pipeline = Sequential(
        TracePass(),
        AttachPass(seed=options.seed),
        TunePass(target, BlockDataset(loaded.train), options),
        DecidePass(target, method),
        MergePass(),
        ShrinkPass(),
    )
    program = pipeline(Program.start(copy.deepcopy(loaded.model))).program
    assert program.plan is not None
    return {
        "perplexity": token_perplexity(program.model, loaded.heldout, 20).value,
        "achieved_ratio": program.plan.achieved_ratio,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(CORPORA))
    parser.add_argument("--ratios", default="0.3,0.5")
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the corpus's own)")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    OUT.mkdir(exist_ok=True)
    for name in arguments.models.split(","):
        loaded, steps = load(CORPORA[name]), arguments.steps or CORPORA[name].steps
        path = OUT / f"quality-{name}.json"
        found = json.loads(path.read_text()) if path.exists() else {"cells": {}}
        found["dense"] = token_perplexity(loaded.model, loaded.heldout, 20).value
        grid = itertools.product(
            map(int, arguments.seeds.split(",")), map(float, arguments.ratios.split(",")), arguments.methods.split(";")
        )
        for seed, ratio, method in grid:
            key = f"{ratio}|{method}|{steps}|{seed}"
            if key not in found["cells"]:
                criterion, schedule = METHODS[method]
                options = TuneOptions(steps=steps, seed=seed, criterion=criterion, schedule=schedule)
                found["cells"][key] = cell(loaded, ratio, method, options)
                found["versions"], found["threads"] = versions(), torch.get_num_threads()
                path.write_text(json.dumps(found, indent=1) + "\n")
                print(name, key, {k: round(v, 3) for k, v in found["cells"][key].items()}, flush=True)
        text = summary(name, found)
        path.with_suffix(".md").write_text(text)
        print(text)


def summary(name: str, found: dict[str, Any]) -> str:
    """A table: a row a ratio, method and number of steps; perplexities as mean (lowest-highest over the seeds)."""
    groups: dict[str, list[float]] = {}
    for key, values in found["cells"].items():
        groups.setdefault(key.rpartition("|")[0].replace("|", ", "), []).append(values["perplexity"])
    rows = [
        [f"{group} steps", f"{statistics.mean(v):.2f} ({min(v):.2f}–{max(v):.2f})", str(len(v))]
        for group, v in sorted(groups.items())
    ]
    title = f"{name}: held-out token perplexity, dense {found['dense']:.2f}\n\n"
    return title + table(["ratio, method", "mean (range)", "seeds"], rows) + "\n"


if __name__ == "__main__":
    main()
