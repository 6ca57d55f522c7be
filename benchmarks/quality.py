"""Held-out perplexity after compression, recipe by recipe. Resumable.

    python benchmarks/quality.py [--set grid] [--models a,b] [--ratios 0.35] [--seeds 0,1,2] [--steps N] [--only REGEX]

A cell is (model, recipe, ratio, seed): the whole way from the dense model to the compact one. All cells of a model get
the same sequences to tune on in the same order (given the seed), the same optimizer steps and so the same tokens.
Held-out text is never scored or tuned on (``corpora.load`` checks it); what is chosen here is chosen by other held-out
text than what the tables report. Finished cells are read back from ``benchmarks/out/quality-MODEL.jsonl``, to which
several processes may write at once; the same recipe by two names is run once. ``--table`` runs nothing. The tables go
to ``benchmarks/out/quality-SET-MODEL.md``; copied into ``benchmarks/results``, ``python benchmarks/tables_in_docs.py``
puts them into the documentation. For ``--models smollm2``, a really pretrained one, see ``quality_real.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import quality_real
import torch
from corpora import CORPORA, Loaded, load
from quality_cells import EVALUATED_AT_ONCE, Recipe, cell
from quality_recipes import GRID_CRITERIA, SETS
from quality_tables import grid_table, recipes_table, rises_table
from transformers.utils import logging as transformers_logging

from lpc.evaluation import token_perplexity
from lpc.versions import versions
from passes.pipeline import plain

OUT = Path(__file__).parent / "out"
GRID = OUT / "quality-stories260K.jsonl"
"""Where the grid lies: what is best in it goes among the finalists of all models."""

ALL_RATIOS = "0.2,0.35,0.5"
RATIOS = {"grid": "0.35", "ablations": "0.35", "samples": "0.35"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--set", default="finalists", choices=SETS)
    parser.add_argument("--models", default=",".join(CORPORA))
    parser.add_argument("--ratios", help="default: 0.35 for grid, ablations and samples, else 0.2,0.35,0.5")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the corpus's own)")
    parser.add_argument("--only", default="", help="recipes whose name matches this regular expression")
    parser.add_argument("--rate", type=float, default=0.0011, help="of adapters, of a really pretrained model")
    parser.add_argument("--rows", type=int, default=300, help="rows a task, of a really pretrained model")
    parser.add_argument("--samples", type=int, default=128, help="sequences ranked, of a really pretrained model")
    parser.add_argument("--table", action="store_true", help="run nothing, write the tables")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    OUT.mkdir(exist_ok=True)
    for name in arguments.models.split(","):
        if name not in CORPORA:
            quality_real.main(name, arguments)
            continue
        path, usual = OUT / f"quality-{name}.jsonl", CORPORA[name].steps
        steps = arguments.steps or usual
        if not arguments.table:
            _run(name, path, steps, arguments)
        text = _summary(name, arguments.set, read(path, steps), steps)
        suffix = "" if steps == usual else f"-{steps}-steps"
        (OUT / f"quality-{arguments.set}-{name}{suffix}.md").write_text(text)
        print(text)


def read(path: Path, steps: int) -> list[dict[str, Any]]:
    """The finished cells of so many steps, and the dense model's."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row["key"]["steps"] in (0, steps)]


def grid_rows() -> list[dict[str, Any]]:
    """The finished cells of the grid."""
    return read(GRID, CORPORA["stories260K"].steps)


def _run(name: str, path: Path, steps: int, arguments: argparse.Namespace) -> None:
    loaded = load(CORPORA[name])
    ratios = arguments.ratios or RATIOS.get(arguments.set, ALL_RATIOS)
    recipes = {key: made for key, made in SETS[arguments.set](grid_rows()).items() if re.search(arguments.only, key)}
    _dense(path, loaded)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    for seed, ratio, recipe in itertools.product(seeds, map(float, ratios.split(",")), recipes):
        key = {"recipe": recipe, "ratio": ratio, "steps": steps, "seed": seed}
        rows = read(path, steps)
        if any(row["key"] == key for row in rows):
            continue
        values = _same(rows, recipes[recipe], key) or cell(loaded, recipes[recipe], ratio, steps, seed)
        _append(path, {**values, "key": key})
        print(name, *key.values(), f"{values['perplexity']:.3f} {values['seconds']:.0f} s", file=sys.stderr, flush=True)


def _same(rows: list[dict[str, Any]], recipe: Recipe, key: dict[str, Any]) -> dict[str, Any] | None:
    """The finished cell of the same recipe by another name."""
    made, rest = plain(recipe), {name: key[name] for name in ("ratio", "steps", "seed")}
    return next((row for row in rows if row.get("recipe") == made and rest.items() <= row["key"].items()), None)


def _dense(path: Path, loaded: Loaded) -> None:
    if not any(row["key"]["recipe"] == "dense" for row in read(path, 0)):
        held = loaded.heldout
        value = token_perplexity(loaded.model, held.blocks, EVALUATED_AT_ONCE, labels=held.labels).value
        key = {"recipe": "dense", "ratio": 0.0, "steps": 0, "seed": 0}
        _append(path, {"key": key, "perplexity": value, "threads": torch.get_num_threads(), "versions": versions()})


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _summary(name: str, chosen: str, found: list[dict[str, Any]], steps: int) -> str:
    dense = next(row["perplexity"] for row in found if row["key"]["recipe"] == "dense")
    recipes = list(SETS[chosen](grid_rows()))
    ratios = [float(ratio) for ratio in RATIOS.get(chosen, ALL_RATIOS).split(",")]
    rows = [row for row in found if row["key"]["recipe"] in recipes and row["key"]["ratio"] in ratios]
    taken = "nothing trained" if chosen in ("untrained", "samples") else f"{steps} steps"
    spread = "± half of the range" if chosen == "grid" else "(lowest–highest)"
    what = f"held-out token perplexity, dense {dense:.2f}, {taken}; mean {spread} of the seeds"
    parts = [f"{name}: {what}\n"]
    if chosen == "grid":
        parts.append(grid_table(rows, GRID_CRITERIA))
    else:
        parts.append(recipes_table(rows, recipes))
    if chosen == "finalists":
        parts += ["", rises_table(rows, recipes, dense)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
