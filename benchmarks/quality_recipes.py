"""The recipes of the quality benchmark, in named sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quality_cells import Recipe

from passes.distill import DistillOptions
from passes.importance import ImportanceOptions
from passes.schedule import Schedule
from passes.target import Layout
from passes.tune import TuneOptions

Recipes = Mapping[str, Recipe]

SOFT = DistillOptions(weight=0.5, temperature=1.0, hidden_weight=5.0)
LATE = Schedule(warmup=0.1, cooldown=0.1, every=10)

AUTHORS = Recipe(tune=TuneOptions(criterion="loraprune-code", lr_scheduler="linear", schedule=LATE, distill=None))
"""LoRAPrune as its authors coded it; adapter, learning rate and the widths at the end are those of all cells."""

PAPER = Recipe(
    tune=TuneOptions(
        importance=ImportanceOptions(normalise=False, quadratic=True), schedule=replace(LATE, every=1), distill=None
    )
)
"""LoRAPrune as published: squared, with the quadratic term, not normalised, masks at every step, with revival."""


def explore() -> Recipes:
    u, p = Layout.UNIFORM, Layout.PER_LAYER
    return {
        "authors": AUTHORS,
        "cand uniform": Recipe(tune=TuneOptions(distill=SOFT), layout=u),
        "cand per-layer": Recipe(tune=TuneOptions(distill=SOFT), layout=p),
        "cand uniform w.3": Recipe(tune=TuneOptions(distill=replace(SOFT, weight=0.3)), layout=u),
        "paper": PAPER,
    }


def explore2() -> Recipes:
    found = {}
    for c in ("taylor", "wanda", "flap", "mask-fisher", "fisher", "magnitude"):
        for layout in Layout:
            found[f"{c} {layout} P"] = Recipe(
                tune=TuneOptions(criterion=c, distill=SOFT),
                layout=layout,
                comparison="raw" if c == "flap" and layout == "per-layer" else "kind",
            )
    return found


SETS = {"explore": explore, "explore2": explore2}
