"""A sweep: a grid of values over one declaration of options, in a YAML file; each of its cells is one compression."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from exporters.options import EXPORTER_NAMES
from lpc.options.compress import CompressOptions
from lpc.options.recipe import check_parts, find_recipe, read_recipe, read_yaml, recipe_text
from passes.errors import DataError, MissingFileError, OptionError
from passes.options import check, from_dict, option, to_dict

MOST_CELLS = 10_000
MOST_LETTERS = 150
"""Of a cell's name, which is that of a folder; longer ones are told apart by a digest."""
ODD = re.compile(r"[^\w.+=,-]+")


@dataclass(frozen=True, kw_only=True)
class StoppingOptions:
    """How hopeless cells are stopped: by successive halving (ASHA, Li et al., arXiv 1810.05934), through Optuna.

    Only cells of one goal are compared, by the held-out loss at the same step, and only once none of their units will
    go or come back.
    """

    first: int = option(least=1, help="Steps that every cell gets.")
    factor: int = option(
        3, least=2, help="After first, first·factor, ... steps one in so many of the cells that got there goes on."
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One compression: its place in the grid, a name for its folder, the values that vary, and all of its options."""

    number: int
    name: str
    values: Mapping[str, Any]
    options: CompressOptions

    @property
    def goal(self) -> str:
        """What it is to reach; cells of one goal can be compared while they tune."""
        target = to_dict(self.options.target)
        return json.dumps({name: target[name] for name in ("ratio", "budget") if target[name] is not None})

    def recipe(self, command: str) -> str:
        """Its recipe; the command that runs it stands in a comment."""
        return recipe_text(self.options, f"A cell of a sweep; to run it alone:\n{command}")


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What a sweep's file says. ``grid`` has the keys of a recipe, with a list of values where a recipe has one."""

    model: str = option(help="A model folder, or a name on the Hugging Face hub.")
    data: tuple[Path, ...] = option(
        (), help="What to rank, tune and measure on, as for --data; without any a causal LM writes its own."
    )
    recipe: str | None = option(None, help="The recipe that all cells share: a name, a file or an output.")
    options: Mapping[str, Any] = option(factory=dict, help="Options that all cells share, as a recipe has them.")
    grid: Mapping[str, Any] = option(help="Options as a recipe has them, each with a list of values to try.")
    export: tuple[str, ...] = option(("hf",), choices=EXPORTER_NAMES.known, help="Formats to write.")
    early_stopping: StoppingOptions | None = option(None, help="Stop cells that are behind others of their goal.")

    def __post_init__(self) -> None:
        check(self)
        if not self.export:
            raise OptionError("export is empty: name at least one format")
        for name in ("options", "grid"):
            part = getattr(self, name)
            if not isinstance(part, Mapping):
                raise OptionError(f"{name} must hold options as a recipe has them, got {part!r:.80}")
            check_parts(part)

    @classmethod
    def read(cls, file: str | Path) -> SweepOptions:
        """A sweep's file. Raises MissingFileError, DataError for what is no YAML, OptionError for what it says."""
        path = Path(file)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise MissingFileError(f"no such file: {path}: name the file of a sweep (docs/sweep.md)") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the sweep {path} cannot be read: {error}") from error
        return from_dict(cls, read_yaml(text, "sweep", "`grid: {target: {ratio: [0.1, 0.3]}}`"))

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, in the order of the grid, the last option fastest. Raises OptionError, naming the cell."""
        axes = list(_axes(self.grid))
        if not axes:
            raise OptionError("grid is empty: give at least one option a list, such as target: {ratio: [0.1, 0.3]}")
        if prod(len(values) for _, values in axes) > MOST_CELLS:
            raise OptionError(f"the grid has more than {MOST_CELLS:,} cells: leave values out")
        shared = _merged(read_recipe(find_recipe(self.recipe)) if self.recipe else {}, self.options)
        labels = _labels([path for path, _ in axes])
        cells = [
            self._cell(number, shared, axes, labels, values)
            for number, values in enumerate(product(*(values for _, values in axes)))
        ]
        names = [cell.name for cell in cells]
        twice = next((name for name in names if names.count(name) > 1), None) if len({*names}) < len(names) else None
        if twice is not None:
            raise OptionError(f"two cells are called {twice}: give no value twice")
        return tuple(cells)

    def _cell(
        self,
        number: int,
        shared: Mapping[str, Any],
        axes: Sequence[tuple[tuple[str, ...], Sequence[Any]]],
        labels: Sequence[str],
        values: Sequence[Any],
    ) -> Cell:
        varied = dict(zip(labels, values, strict=True))
        name, made = _name(varied), shared
        for (path, _), value in zip(axes, values, strict=True):
            made = _merged(made, _nested(path, value))
        try:
            options = from_dict(CompressOptions, made)
            if options.snapshots is not None:
                raise OptionError("snapshots make a family in one run: leave them out, and vary target.ratio")
        except OptionError as error:
            raise OptionError(f"cell {name}: {error}") from error
        if self.early_stopping is not None:
            options = replace(options, tune=replace(options.tune, heldout_every=self.early_stopping.first))
        return Cell(number=number, name=name, values=varied, options=options)

    def cell(self, named: str) -> Cell:
        """The cell of a number or a name. Raises OptionError."""
        found = next((each for each in self.cells if named in (str(each.number), each.name)), None)
        if found is None:
            raise OptionError(f"there is no cell {named}: cells have the numbers 0 to {len(self.cells) - 1}")
        return found


def _axes(grid: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Sequence[Any]]]:
    """What varies: the path to each option that has a list, and the list. Raises OptionError."""
    for name, value in grid.items():
        path = (*above, name)
        if isinstance(value, Mapping):
            yield from _axes(value, path)
        elif isinstance(value, list | tuple) and value:
            yield path, value
        else:
            raise OptionError(f"grid.{'.'.join(path)} must be a list of the values to try, got {value!r:.80}")


def _labels(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The last part of each path, or all of it where two end alike."""
    last = [path[-1] for path in paths]
    return [".".join(path) if last.count(path[-1]) > 1 else path[-1] for path in paths]


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    return {path[0]: _nested(path[1:], value) if len(path) > 1 else value}


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both, option by option, also inside of options; the second wins."""
    found = dict(first)
    for name, value in second.items():
        there = found.get(name)
        both = isinstance(there, Mapping) and isinstance(value, Mapping)
        found[name] = _merged(there, value) if both and there is not None else value
    return found


def _name(values: Mapping[str, Any]) -> str:
    """The same whatever order the file has: what is finished is known by it."""
    said = {name: value if isinstance(value, str) else json.dumps(value) for name, value in sorted(values.items())}
    name = "_".join(f"{label}-{ODD.sub('-', text.replace(' ', '')).strip('-')}" for label, text in said.items())
    return name if len(name) <= MOST_LETTERS else f"cell-{sha256(json.dumps(said).encode()).hexdigest()[:16]}"
