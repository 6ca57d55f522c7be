"""What a user can ask of lpc beside the compiler: data, evaluation, benchmark, a whole compression. Needs no torch."""

from lpc.options.benchmark import BenchmarkOptions
from lpc.options.compress import CompressOptions
from lpc.options.data import DataOptions
from lpc.options.evaluate import AUTO_BATCH, BACKENDS, PRESETS, AskedTask, EvaluateOptions, Preset
from lpc.options.instructions import ALPACA, ALPACA_WITH_INPUT, InstructionFormat
from lpc.options.output import InputOptions, OutputOptions
from lpc.options.recipe import (
    PRESET_RECIPES,
    RECIPE_FILE,
    find_recipe,
    known_recipes,
    read_recipe,
    recipe_options,
    recipe_schema,
    recipe_text,
)
from lpc.options.short import OWNERS, Short, check_kinds, check_short, short_names, target_from, with_short
from lpc.options.sweep import Cell, StoppingOptions, SweepOptions

__all__ = [
    "ALPACA",
    "ALPACA_WITH_INPUT",
    "AUTO_BATCH",
    "BACKENDS",
    "OWNERS",
    "PRESETS",
    "PRESET_RECIPES",
    "RECIPE_FILE",
    "AskedTask",
    "BenchmarkOptions",
    "Cell",
    "CompressOptions",
    "DataOptions",
    "EvaluateOptions",
    "InputOptions",
    "InstructionFormat",
    "OutputOptions",
    "Preset",
    "Short",
    "StoppingOptions",
    "SweepOptions",
    "check_kinds",
    "check_short",
    "find_recipe",
    "known_recipes",
    "read_recipe",
    "recipe_options",
    "recipe_schema",
    "recipe_text",
    "short_names",
    "target_from",
    "with_short",
]
