"""The folder of a sweep: a declaration, an output a cell, and what became of the cells that have none."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from exporters.files import locked, put_in_place, run_folder, write_text
from lpc.options import Cell, SweepOptions
from lpc.owned import is_complete
from passes.errors import DataError, OptionError, OutputError, OutputExistsError
from passes.options import to_dict

DECLARATION, CELLS, TRIALS = "sweep.yaml", "cells", "trials.log"
REPORTS = ("sweep.json", "report.md", "report.html")


class State(StrEnum):
    """What became of a cell."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """Its tuning was ended early, since it was behind others of its goal."""
    FAILED = "failed"
    OPEN = "open"
    """Not begun, or not at its end yet."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The state of a cell, and why."""

    state: State
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class SweepFolder:
    """Where a sweep lies: ``NAME`` has the output of that cell, ``cells/NAME.yaml`` its recipe."""

    path: Path

    @property
    def trials(self) -> Path:
        """Optuna's journal of all cells."""
        return self.path / TRIALS

    def output(self, cell: Cell) -> Path:
        """The output of a cell."""
        return self.path / cell.name

    def beside(self, cell: Cell, ending: str) -> Path:
        """A file about a cell: its recipe (``.yaml``), its outcome (``.json``), what it printed (``.log``)."""
        return self.path / CELLS / f"{cell.name}{ending}"

    def command(self, sweep: SweepOptions, cell: Cell) -> str:
        """What runs a cell by itself; with ``--cell`` other cells of its goal can stop it as well."""
        words = ["lpc", "compress", sweep.model, *(word for each in sweep.data for word in ("--data", str(each)))]
        words += ["--recipe", os.path.abspath(self.beside(cell, ".yaml")), "--out", os.path.abspath(self.output(cell))]
        return shlex.join([*words, "--export", ",".join(sweep.export)])

    def begin(self, sweep: SweepOptions) -> None:
        """Write the declaration and the recipe of every cell; a folder of the same sweep is gone on with.

        Raises OutputExistsError for a folder of something else, OptionError if a cell was declared otherwise before,
        OutputError.
        """
        file = self.path / DECLARATION
        if self.path.is_dir() and any(self.path.iterdir()) and not file.is_file():
            raise OutputExistsError(f"{self.path} is not empty, and holds no sweep: choose another --out")
        recipes = {self.beside(cell, ".yaml"): cell.recipe(self.command(sweep, cell)) for cell in sweep.cells}
        for path, text in recipes.items():
            if path.is_file() and path.read_text(encoding="utf-8") != text:
                raise OptionError(
                    f"{path} says what this cell was declared as before, and that is not what it is now: "
                    "choose another --out, or give model, data, options and --out as they were"
                )
        try:
            (self.path / CELLS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"could not make {self.path}: {error.strerror or error}") from error
        for path, text in recipes.items():
            if not path.is_file():
                write_text(path, text)
        write_text(file, _yaml(sweep))

    def outcome(self, cell: Cell) -> Outcome:
        """What became of a cell so far; an output that a dead run had finished is put in its place."""
        put_in_place(self.output(cell))
        if is_complete(self.output(cell)):
            return Outcome(state=State.FINISHED)
        try:
            noted = json.loads(self.beside(cell, ".json").read_text(encoding="utf-8"))
            return Outcome(state=State(noted["state"]), why=str(noted["why"]))
        except FileNotFoundError:
            return Outcome(state=State.OPEN)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.beside(cell, '.json')} cannot be read: remove it to run the cell anew") from error

    def held(self, cell: Cell) -> str:
        """Who is at a cell just now, as its lock tells; nothing if nobody is."""
        try:
            with locked(run_folder(self.output(cell)), f"the cell {cell.name}"):
                return ""
        except OutputError as error:
            return str(error)

    def forget(self, cell: Cell) -> None:
        """No word of an earlier try is left, so that one that dies is not told as that."""
        self.beside(cell, ".json").unlink(missing_ok=True)

    def note(self, cell: Cell, outcome: Outcome) -> None:
        """Write down what became of a cell that has no output, or no word of it if it is finished."""
        if outcome.state is State.FINISHED:
            self.forget(cell)
        else:
            write_text(self.beside(cell, ".json"), json.dumps({"state": outcome.state, "why": outcome.why}) + "\n")


def _yaml(sweep: SweepOptions) -> str:
    import yaml

    return str(yaml.safe_dump(to_dict(sweep), sort_keys=False, allow_unicode=True))
