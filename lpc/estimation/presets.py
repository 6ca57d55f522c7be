"""What each preset would cost, beside one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lpc.estimation.outlook import estimate
from lpc.estimation.result import Estimate
from lpc.options import PRESET_RECIPES, find_recipe, read_recipe, recipe_options
from passes.options import RunOptions, TuneOptions


def estimate_presets(model: str | Path, flops: float, **asked: Any) -> dict[str, Estimate]:
    """Estimates by preset, at a rate of ``flops`` operations a second; ``asked`` are arguments of ``estimate``.

    What a preset's recipe says of ``tune`` and ``run`` wins over what is asked. Raises what ``estimate`` raises.
    """
    found = {}
    for name, recipe in PRESET_RECIPES.items():
        said = recipe_options(read_recipe(find_recipe(recipe))) if recipe is not None else {}
        tune = replace(asked["tune"], **said.get(TuneOptions, {}))
        run = replace(asked["run"], **said.get(RunOptions, {}))
        found[name] = estimate(model, flops=flops, **{**asked, "tune": tune, "run": run})
    return found
