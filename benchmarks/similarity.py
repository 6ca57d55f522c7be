"""How alike the masks are that the gradients of LoRA and the true gradient choose (LoRAPrune's approximation).

    python benchmarks/similarity.py [--models a,b] [--seeds 0,1,2]

Both score the same calibration sequences with the same formula, ((·) ⊙ W)², once on the model as it came (B = 0) and
once after half of a corpus's steps of dense tuning. The similarity at a ratio is the share of the units that one
removes and the other removes too; by chance it is the ratio. Writes benchmarks/out/similarity.json and .md.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from corpora import CORPORA, Loaded, load
from transformers.utils import logging as transformers_logging

from lpc.report import table
from lpc.versions import versions
from passes.decide import ScorePass
from passes.options import ImportanceOptions, Schedule, ScoreOptions, Target, TuneOptions
from passes.pipeline import Pipeline, Program
from passes.trace import TracePass
from passes.tuning import AttachPass, TunePass

OUT = Path(__file__).parent / "out"
RATIOS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
ANY = Target(ratio=0.3)
LAST_STEP = Schedule(warmup=0.999, cooldown=0)


def scores(program: Program, loaded: Loaded, criterion: str, seed: int) -> Mapping[str, torch.Tensor]:
    """Scores of 128 sequences, with no mask on."""
    options = ScoreOptions(criterion=criterion, seed=seed, importance=ImportanceOptions(normalise=False))
    found = ScorePass(ANY, loaded.train, options)(replace(program, masks=None)).program.scores
    assert found is not None
    return found


def similarity(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], ratio: float) -> float:
    """The share of the units removed by the one that the other removes too, each dimension giving ``ratio``."""
    shared = total = 0
    for name, first in one.items():
        count = round(ratio * len(first))
        gone = [set(each.argsort()[:count].tolist()) for each in (first, other[name])]
        shared, total = shared + len(gone[0] & gone[1]), total + count
    return shared / total


def measure(loaded: Loaded, steps: int, seed: int) -> dict[str, dict[str, float]]:
    """By state of the model and by ratio."""
    program = Pipeline([TracePass(), AttachPass(seed=seed)])(Program.start(copy.deepcopy(loaded.model))).program
    found = {}
    for state in ("before tuning", f"after {steps} steps"):
        if state != "before tuning":
            tune = TuneOptions(steps=steps, seed=seed, criterion="random", schedule=LAST_STEP, distill=None)
            program = TunePass(ANY, loaded.train, tune)(program).program
        pair = [scores(program, loaded, criterion, seed) for criterion in ("loraprune", "taylor")]
        found[state] = {str(ratio): similarity(pair[0], pair[1], ratio) for ratio in RATIOS}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(CORPORA))
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    OUT.mkdir(exist_ok=True)
    results, rows = {}, []
    for name in arguments.models.split(","):
        loaded, steps = load(CORPORA[name]), CORPORA[name].steps // 2
        results[name] = [measure(loaded, steps, int(seed)) for seed in arguments.seeds.split(",")]
        for state in results[name][0]:
            values = [[each[state][str(ratio)] for each in results[name]] for ratio in RATIOS]
            rows.append([f"{name}, {state}", *(f"{statistics.mean(v):.2f}" for v in values)])
    (OUT / "similarity.json").write_text(json.dumps({"similarity": results, "versions": versions()}, indent=1) + "\n")
    text = table(["the share that both remove, at", *map(str, RATIOS)], rows) + "\n"
    (OUT / "similarity.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
