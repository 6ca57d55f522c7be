"""Held-out perplexity after compression, recipe by recipe. Resumable.

    python benchmarks/quality.py [--set grid] [--models a,b] [--ratios 0.35] [--seeds 0,1,2] [--only TEXT]

A cell is (model, recipe, ratio, seed); all cells of a model get the same sequences to tune on, the same steps and so
the same tokens. Finished cells are read back from ``benchmarks/out/quality-MODEL.jsonl``, to which several processes
may write at once. Held-out text is never scored or tuned on (``corpora.load`` checks it).
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from corpora import CORPORA, load
from quality_cells import cell
from quality_recipes import SETS
from transformers.utils import logging as transformers_logging

from lpc.manifest import versions

OUT = Path(__file__).parent / "out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--set", default="explore", choices=SETS)
    parser.add_argument("--models", default=",".join(CORPORA))
    parser.add_argument("--ratios", default="0.35")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    OUT.mkdir(exist_ok=True)
    for name in arguments.models.split(","):
        path, loaded = OUT / f"quality-{name}.jsonl", load(CORPORA[name])
        steps = arguments.steps or CORPORA[name].steps
        recipes = {k: r for k, r in SETS[arguments.set]().items() if arguments.only in k}
        seeds, ratios = map(int, arguments.seeds.split(",")), map(float, arguments.ratios.split(","))
        for seed, ratio, (recipe, made) in itertools.product(seeds, ratios, recipes.items()):
            key = {"recipe": recipe, "ratio": ratio, "steps": steps, "seed": seed}
            if key in keys(path):
                continue
            values = cell(loaded, made, ratio, steps, seed)
            append(path, {"key": key, **values, "threads": torch.get_num_threads(), "versions": versions()})
            print(
                name,
                *key.values(),
                {k: round(values[k], 3) for k in ("perplexity", "choice", "seconds", "cpu_seconds")},
                flush=True,
            )


def keys(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["key"] for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
