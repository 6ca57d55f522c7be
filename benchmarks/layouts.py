"""Uniform against per-layer widths: held-out perplexity at the same parameters, steps and data. Resumable.

    python benchmarks/layouts.py [--models a,b] [--ratios 0.2,0.35,0.5] [--seeds 0,1,2] [--steps N] [--methods a;b]

A cell is (model, ratio, method, seed): the whole pipeline, and the perplexity of the shrunk model. Methods are the
uniform layout, and the layout per layer with each way to compare scores of different dimensions, of scores with and
without the normalisation of each projection. Texts and sequences are those of benchmarks/quality.py.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from quality import CORPORA, Loaded, load
from transformers.utils import logging as transformers_logging

from lpc.data import BlockDataset
from lpc.manifest import versions
from lpc.perplexity import token_perplexity
from lpc.report import table
from passes.attach import AttachPass
from passes.decide import DecidePass
from passes.importance import ImportanceOptions
from passes.infra import Sequential
from passes.merge import MergePass
from passes.program import Program
from passes.shrink import ShrinkPass
from passes.target import Layout, Target
from passes.trace import TraceOptions, TracePass
from passes.tune import TuneOptions, TunePass

OUT = Path(__file__).parent / "out"

METHODS: dict[str, tuple[Layout, str, bool]] = {
    "uniform": (Layout.UNIFORM, "kind", True),
    "uniform, not normalised": (Layout.UNIFORM, "kind", False),
    "per-layer, kind": (Layout.PER_LAYER, "kind", True),
    "per-layer, kind, not normalised": (Layout.PER_LAYER, "kind", False),
    "per-layer, dimension": (Layout.PER_LAYER, "dimension", True),
    "per-layer, raw": (Layout.PER_LAYER, "raw", True),
    "per-layer, raw, not normalised": (Layout.PER_LAYER, "raw", False),
}
"""Layout, comparison, and whether each projection's scores are normalised."""

PLAIN = "uniform;per-layer, kind;per-layer, kind, not normalised;per-layer, dimension"


def cell(loaded: Loaded, ratio: float, method: str, steps: int, seed: int) -> dict[str, Any]:
    """Compress once; held-out perplexity of the shrunk model, kept counts and seconds."""
    start = time.perf_counter()
    layout, comparison, normalise = METHODS[method]
    target = Target(ratio=ratio, layout=layout, comparison=comparison)
    options = TuneOptions(steps=steps, seed=seed, importance=ImportanceOptions(normalise=normalise))
    pipeline = Sequential(
        TracePass(TraceOptions(custom_code=layout is Layout.PER_LAYER)),
        AttachPass(seed=seed),
        TunePass(target, BlockDataset(loaded.train), options),
        DecidePass(target, options.criterion),
        MergePass(),
        ShrinkPass(),
    )
    program = pipeline(Program.start(copy.deepcopy(loaded.model))).program
    assert program.plan is not None
    return {
        "perplexity": token_perplexity(program.model, loaded.heldout, 20).value,
        "achieved_ratio": program.plan.achieved_ratio,
        "counts": program.plan.counts(),
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(CORPORA))
    parser.add_argument("--ratios", default="0.2,0.35,0.5")
    parser.add_argument("--methods", default=PLAIN, help="separated by semicolons")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the corpus's own)")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    OUT.mkdir(exist_ok=True)
    for name in arguments.models.split(","):
        loaded, steps = load(CORPORA[name]), arguments.steps or CORPORA[name].steps
        path = OUT / f"layouts-{name}.json"
        found = json.loads(path.read_text()) if path.exists() else {"cells": {}}
        found["dense"] = token_perplexity(loaded.model, loaded.heldout, 20).value
        grid = itertools.product(
            map(int, arguments.seeds.split(",")), map(float, arguments.ratios.split(",")), arguments.methods.split(";")
        )
        for seed, ratio, method in grid:
            key = f"{ratio}|{method}|{steps}|{seed}"
            if key not in found["cells"]:
                found["cells"][key] = cell(loaded, ratio, method, steps, seed)
                found["versions"], found["threads"] = versions(), torch.get_num_threads()
                path.write_text(json.dumps(found, indent=1) + "\n")
                print(name, key, round(found["cells"][key]["perplexity"], 3), flush=True)
        text = summary(name, found)
        path.with_suffix(".md").write_text(text)
        print(text)


def summary(name: str, found: dict[str, Any]) -> str:
    """A row a ratio and method; perplexity as mean (lowest-highest), and wins over uniform seed by seed."""
    groups: dict[tuple[str, str, str], dict[str, float]] = {}
    for key, values in found["cells"].items():
        ratio, method, steps, seed = key.split("|")
        groups.setdefault((ratio, method, steps), {})[seed] = values["perplexity"]
    rows = []
    for (ratio, method, steps), own in sorted(groups.items()):
        uniform = groups.get((ratio, "uniform", steps), {})
        pairs = [(own[seed], uniform[seed]) for seed in own if seed in uniform]
        wins = "–" if method == "uniform" else f"{sum(mine < theirs for mine, theirs in pairs)} of {len(pairs)}"
        v = list(own.values())
        rows.append(
            [f"{ratio}, {method}, {steps} steps", f"{statistics.mean(v):.2f} ({min(v):.2f}–{max(v):.2f})", wins]
        )
    title = f"{name}: held-out token perplexity, dense {found['dense']:.2f}\n\n"
    return title + table(["ratio, method", "mean (range)", "below uniform"], rows) + "\n"


if __name__ == "__main__":
    main()
