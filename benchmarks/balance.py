"""Heads against channels: what each way to share what goes leaves, by itself, compensated, and tuned.

    python benchmarks/balance.py [--models stories260K,wikitext-llama] [--ratios 0.2,0.35,0.5] [--steps 100]
    LPC_MODELS=DIR python benchmarks/balance.py --models smollm2 --ratios 0.2 --steps 0 --sequences 48

Units are ranked by ``obs``; of each way the lowest go. Perplexity of the sequences that choices are made by (of SmolLM2
of WikiText-2's validation text) with the units gone; after compensation (λ = 0.01, nothing is tuned); and tuned as by
default (λ = 1, distilled), where ``--steps`` is not 0. The way that ``lpc`` takes is marked. Resumable: each way is
written as it comes. Writes benchmarks/out/balance.jsonl and balance.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from corpora import CORPORA, Corpus, Loaded, load

from lpc.data import BlockDataset
from lpc.report import table
from passes.budget import Solver, best_units
from passes.compensation import CompensatePass
from passes.decide import WAYS, DecidePass, ScorePass
from passes.models import heldout_loss
from passes.options import ONE_SHOT, CompensateOptions, LoraOptions, ScoreOptions, Target, TuneOptions
from passes.pipeline import Pass, Pipeline, Program, RunContext
from passes.shrink import ShrinkPass
from passes.trace import TracePass
from passes.tuning import AttachPass, MergePass, TunePass

OUT = Path(__file__).parent / "out"
KNOWN = {
    **CORPORA,
    "smollm2": Corpus(
        "smollm2", "text/wikitext-2/train.txt", "text/wikitext-2/valid.txt", 0, length=256, train=2000, heldout=1
    ),
}
STATES = ("removed", "compensated", "tuned")


def main() -> None:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="stories260K,wikitext-llama")
    parser.add_argument("--ratios", default="0.2,0.35,0.5")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--sequences", type=int, default=128, help="that perplexity is of")
    arguments = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    path = OUT / "balance.jsonl"
    for name in arguments.models.split(","):
        loaded = load(KNOWN[name])
        judged = BlockDataset(loaded.choice.blocks[: arguments.sequences], loaded.choice.labels[: arguments.sequences])
        for ratio in map(float, arguments.ratios.split(",")):
            measure(path, name, loaded, judged, ratio, arguments.steps)
    text = summary(read(path))
    (OUT / "balance.md").write_text(text)
    print(text)


def read(path: Path) -> list[dict[str, Any]]:
    """The finished ways."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def measure(path: Path, name: str, loaded: Loaded, judged: BlockDataset, ratio: float, steps: int) -> None:
    """Rank once, and measure each way that is not there yet."""
    key, target = {"model": name, "ratio": ratio, "steps": steps}, Target(ratio=ratio)
    if any(key.items() <= row.items() for row in read(path)):
        return
    program = traced(loaded)
    scored = ScorePass(target, loaded.train, ScoreOptions(criterion="obs"))(program).program
    assert scored.scores is not None
    assert scored.masks is not None
    solver, graph = Solver.of(target, program.traced), program.traced
    taken = {name: int(mask.sum()) for name, mask in scored.masks.items()}
    rows = []
    for counts in solver.balances(WAYS):
        masks = best_units(graph, scored.scores, graph.uniform(counts))
        found = {}
        for state in STATES if steps else STATES[:2]:
            begun = replace(traced(loaded), masks=masks, scores=scored.scores).expecting_itself()
            passes = [*before(state, target, loaded, steps), DecidePass(target, "obs"), *after(state), ShrinkPass()]
            model = Pipeline(passes)(begun, RunContext()).program.model
            found[state] = math.exp(heldout_loss(model, judged, 8))
        parameters = graph.parameters({n: tuple(mask.nonzero().flatten().tolist()) for n, mask in masks.items()})
        chosen = taken == graph.uniform(counts)
        rows.append({**key, "kept": dict(counts), "parameters": parameters, "taken": chosen, **found})
        print(json.dumps(rows[-1]), flush=True)
    with path.open("a") as file:
        file.writelines(json.dumps({**row, "at": time.strftime("%Y-%m-%d")}) + "\n" for row in rows)


def traced(loaded: Loaded) -> Program:
    """A copy of the dense model, since passes change what they are given."""
    return Pipeline([TracePass()])(Program.start(copy.deepcopy(loaded.model)), RunContext()).program


def before(state: str, target: Target, loaded: Loaded, steps: int) -> Sequence[Pass]:
    """What is done to the masked model."""
    if state == "removed":
        return []
    if state == "compensated":
        return [CompensatePass(loaded.train, CompensateOptions())]
    options = TuneOptions(steps=steps, criterion="obs", schedule=ONE_SHOT)
    gently = CompensatePass(loaded.train, CompensateOptions(ridge=1.0), keep_originals=True)
    return [AttachPass(LoraOptions()), gently, TunePass(target, loaded.train, options)]


def after(state: str) -> Sequence[Pass]:
    """What is done once it is decided."""
    return [MergePass()] if state == "tuned" else []


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a way."""
    lines = [
        [
            f"{row['model']}, {row['ratio']:g}",
            ", ".join(f"{count:,} {width}" for width, count in row["kept"].items()) + (" (taken)" * row["taken"]),
            f"{row['parameters']:,}",
            *(f"{row[state]:.2f}" if state in row else "" for state in STATES),
        ]
        for row in rows
    ]
    return table(["model, ratio", "what stays", "parameters", *STATES], lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
