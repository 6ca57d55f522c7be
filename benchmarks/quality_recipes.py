"""The recipes of the quality benchmark by name, in sets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from quality_cells import Recipe

from passes.criteria import CRITERIA
from passes.options import (
    ONE_SHOT,
    CompensateOptions,
    DistillOptions,
    ImportanceOptions,
    Layout,
    LoraOptions,
    Schedule,
    TuneOptions,
)

Recipes = Mapping[str, Recipe]
Row = Mapping[str, Any]

GRID_CRITERIA = (
    "obs",
    "loraprune",
    "taylor",
    "fisher",
    "mask-fisher",
    "wanda",
    "flap",
    "magnitude",
    "magnitude-l1",
    "random",
)
"""All but LoRAPrune's authors' own form, which is among the finalists with all that belongs to it."""

PROGRESSIVE = Schedule()
LATE = Schedule(warmup=0.1, cooldown=0.1, every=10)

DEFAULT = Recipe(
    tune=TuneOptions(criterion="obs", schedule=ONE_SHOT, distill=DistillOptions()),
    compensate=CompensateOptions(ridge=1.0),
)
"""What ``lpc.compress`` does when it is told nothing."""

AUTHORS = Recipe(tune=TuneOptions(criterion="loraprune-code", lr_scheduler="linear", schedule=LATE, distill=None))
"""LoRAPrune as its authors coded it; adapter, learning rate and the widths at the end are those of all cells."""

AUTHORS_OWN = replace(AUTHORS, tune=replace(AUTHORS.tune, learning_rate=1e-4), lora=LoraOptions(rank=8, alpha=16))
"""The same with the authors' adapter and learning rate."""

PAPER = Recipe(
    tune=TuneOptions(
        criterion="loraprune",
        importance=ImportanceOptions(normalise=False, quadratic=True),
        schedule=replace(LATE, every=1),
        distill=None,
    )
)
"""LoRAPrune as published: squared, with the quadratic term, not normalised, masks at every step, with revival."""


def one_shot(criterion: str) -> Recipe:
    """Ranked on calibration data; nothing is trained."""
    return Recipe(tune=TuneOptions(criterion=criterion), trained=False)


def tuned(criterion: str, *, distilled: bool, schedule: Schedule = PROGRESSIVE) -> Recipe:
    """Trained, with the units gone before, or on the way."""
    distill = DistillOptions() if distilled else None
    return Recipe(tune=TuneOptions(criterion=criterion, distill=distill, schedule=schedule))


def compensated(recipe: Recipe) -> Recipe:
    """The same with compensation."""
    return replace(recipe, compensate=CompensateOptions())


def grid(rows: Sequence[Row]) -> Recipes:
    """Criterion × (one-shot, one-shot and tuned, progressive) × compensation × distillation."""
    found: dict[str, Recipe] = {}
    for name in GRID_CRITERIA:
        plain = {f"{name}, one-shot": one_shot(name)}
        for distilled in (False, True):
            soft = ", distilled" if distilled else ""
            plain[f"{name}, one-shot, tuned{soft}"] = tuned(name, distilled=distilled, schedule=ONE_SHOT)
            plain[f"{name}, progressive{soft}"] = tuned(name, distilled=distilled)
        for key, recipe in plain.items():
            found |= {key: recipe, f"{key}, compensated": compensated(recipe)}
    return found


def finalists(rows: Sequence[Row]) -> Recipes:
    """The default, LoRAPrune's two, and the recipe of each other criterion that was best in the grid on the text that
    choices are made by.
    """
    wide = replace(DEFAULT, layout=Layout.PER_LAYER)
    found = {"default": DEFAULT, "default, per-layer": wide, "authors": AUTHORS, "authors, own rate": AUTHORS_OWN}
    found["paper"] = PAPER
    found["default, not compensated"] = replace(DEFAULT, compensate=None)
    found["default, ridge 0.01"] = compensated(DEFAULT)
    found["default, per-layer, ridge 0.01"] = compensated(wide)
    made = grid(rows)
    for name in GRID_CRITERIA:
        means = {key: mean(rows, key, "choice") for key in made if key.startswith(f"{name},") and made[key].trained}
        known = {key: value for key, value in means.items() if value is not None}
        if known and name != "obs":
            best = min(known, key=lambda key: known[key])
            found[best] = made[best]
    return found


def mean(rows: Sequence[Row], recipe: str, measure: str) -> float | None:
    """The mean over the seeds of a recipe's cells in the grid; None if there are none."""
    values = [row[measure] for row in rows if row["key"]["recipe"] == recipe and row["key"]["ratio"] == 0.35]
    return statistics.mean(values) if values else None


def ablations(rows: Sequence[Row]) -> Recipes:
    """One change at a time: of the default, and of LoRAPrune on its progressive schedule with distillation."""
    lora = tuned("loraprune", distilled=True)

    def changed(recipe: Recipe, **options: Any) -> Recipe:
        return replace(recipe, tune=replace(recipe.tune, **options))

    def scored(**options: Any) -> Recipe:
        return changed(lora, importance=ImportanceOptions(**options))

    def scheduled(**options: Any) -> Recipe:
        return changed(lora, schedule=Schedule(**options))

    def taught(**options: Any) -> Recipe:
        return changed(DEFAULT, distill=DistillOptions(**options))

    return {
        "default": DEFAULT,
        "default, without hidden states": taught(hidden_weight=0.0),
        "default, hidden states alone": taught(weight=0.0),
        "default, h = 1": taught(hidden_weight=1.0),
        "default, h = 20": taught(hidden_weight=20.0),
        "default, T = 2": taught(temperature=2.0),
        "default, w = 0.8": taught(weight=0.8),
        "default, per-layer": replace(DEFAULT, layout=Layout.PER_LAYER),
        "default, not compensated": replace(DEFAULT, compensate=None),
        "default, ridge 0.01": compensated(DEFAULT),
        "loraprune, progressive, distilled": lora,
        "loraprune, λ = 0": scored(smoothing=0.0),
        "loraprune, λ = 0.5": scored(smoothing=0.5),
        "loraprune, λ = 0.98": scored(smoothing=0.98),
        "loraprune, abs": scored(form="abs"),
        "loraprune, quadratic term": scored(quadratic=True),
        "loraprune, not normalised": scored(normalise=False),
        "loraprune, no revival": changed(lora, revival=False),
        "loraprune, an event every 10 steps": scheduled(every=10),
        "loraprune, an event every 35 steps": scheduled(every=35),
        "loraprune, all at 5 % of the steps": scheduled(cooldown=0.95),
        "loraprune, all at 35 % of the steps": scheduled(warmup=0.35, cooldown=0.65),
        "loraprune, warm-up 10 %, cool-down 10 %": scheduled(warmup=0.1, cooldown=0.1),
    }


def untrained(rows: Sequence[Row]) -> Recipes:
    """Calibration data only."""
    plain = {f"{name}, one-shot": one_shot(name) for name in CRITERIA}
    found = plain | {f"{key}, compensated": compensated(recipe) for key, recipe in plain.items()}
    obs = replace(one_shot("obs"), layout=Layout.PER_LAYER)
    standardised = replace(one_shot("flap").tune, importance=ImportanceOptions(normalise=True))
    flap = replace(one_shot("flap"), tune=standardised, layout=Layout.PER_LAYER, comparison="raw")
    return found | {
        "obs, one-shot, per-layer": obs,
        "obs, one-shot, per-layer, compensated": compensated(obs),
        "flap, one-shot, per-layer, standardised": flap,
        "flap, one-shot, per-layer, standardised, compensated": compensated(flap),
    }


def samples(rows: Sequence[Row]) -> Recipes:
    """How many calibration sequences are enough."""
    found: dict[str, Recipe] = {}
    for name in ("loraprune", "taylor", "wanda", "obs"):
        for count in (8, 32, 128, 512):
            recipe = replace(one_shot(name), samples=count)
            solved = replace(recipe, compensate=CompensateOptions(samples=count))
            found |= {f"{name}, {count} sequences": recipe, f"{name}, {count} sequences, compensated": solved}
    return found


def layouts(rows: Sequence[Row]) -> Recipes:
    """Uniform against per-layer widths, and how scores of different dimensions are compared; without distillation."""

    def made(layout: Layout, comparison: str, normalise: bool) -> Recipe:
        plain = tuned("loraprune", distilled=False)
        tune = replace(plain.tune, importance=ImportanceOptions(normalise=normalise))
        return Recipe(tune=tune, layout=layout, comparison=comparison)

    return {
        "uniform": made(Layout.UNIFORM, "kind", True),
        "uniform, not normalised": made(Layout.UNIFORM, "kind", False),
        "per-layer, kind": made(Layout.PER_LAYER, "kind", True),
        "per-layer, kind, not normalised": made(Layout.PER_LAYER, "kind", False),
        "per-layer, dimension": made(Layout.PER_LAYER, "dimension", True),
    }


SETS: Mapping[str, Callable[[Sequence[Row]], Recipes]] = {
    made.__name__: made for made in (grid, finalists, ablations, untrained, samples, layouts)
}
