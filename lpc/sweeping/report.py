"""The report of a sweep: a row a cell, the Pareto front, and how far seeds lie apart."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from exporters.files import write_text
from lpc.comparing import ComparedRun, RunComparison, beside
from lpc.options import Cell, SweepOptions
from lpc.report import comparison_page, show_measure, table
from lpc.sweeping.folder import REPORTS, Outcome, State, SweepFolder

SCHEMA_VERSION = 1
SEED = "seed"


@dataclass(frozen=True, kw_only=True)
class CellReport:
    """A cell: the values that it has of those that vary, what became of it, and the command that runs it alone."""

    number: int
    name: str
    values: Mapping[str, Any]
    outcome: Outcome
    command: str


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """All cells, and those that are finished side by side (None if none is)."""

    model: str
    cells: tuple[CellReport, ...]
    comparison: RunComparison | None

    @classmethod
    def of(cls, sweep: SweepOptions, folder: SweepFolder) -> SweepReport:
        """The report of what lies in the folder. Raises DataError for files that are broken."""
        cells = tuple(_cell(sweep, folder, cell) for cell in sweep.cells)
        done = [folder.path / cell.name for cell in cells if cell.outcome.state is State.FINISHED]
        return cls(model=sweep.model, cells=cells, comparison=beside(done) if done else None)

    @property
    def is_whole(self) -> bool:
        """Whether every cell is finished or was stopped."""
        return all(cell.outcome.state in (State.FINISHED, State.STOPPED) for cell in self.cells)

    @property
    def runs(self) -> dict[str, ComparedRun]:
        """The finished cells by name, and the dense model, as far as they were compared."""
        return {_key(run): run for run in self.comparison.runs} if self.comparison is not None else {}

    @property
    def quality(self) -> str | None:
        """The held-out measure that all finished cells have."""
        return self.comparison.quality if self.comparison is not None else None

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: the dense model and a row a cell, in the order of the grid."""
        runs, quality = self.runs, self.quality
        best = self.comparison.front if self.comparison is not None else frozenset[str]()
        header = ["cell", "removed", "parameters", quality or "quality", "state"]
        told = [(cell.name, str(cell.outcome.state)) for cell in self.cells]
        rows = []
        for name, state in [("dense", ""), *told] if "dense" in runs else told:
            run = runs.get(name)
            where = "front" if run is not None and run.name in best else state
            rows.append([name, *(_numbers(run, quality) if run is not None else ["–"] * 3), where])
        return header, rows

    def over_seeds(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: mean, least and most over the seeds of cells that are alike in all else; none without."""
        runs, quality = self.runs, self.quality
        alike: dict[str, list[float]] = {}
        for cell in self.cells:
            if SEED in cell.values and cell.name in runs and quality is not None:
                rest = ", ".join(f"{name} {value}" for name, value in cell.values.items() if name != SEED)
                alike.setdefault(rest or "all", []).append(runs[cell.name].measures[quality])
        if not any(len(found) > 1 for found in alike.values()):
            return [], []
        header = ["over seeds", "seeds", f"mean held-out {quality}", "least", "most"]
        return header, [
            [rest, str(len(v)), *(show_measure(str(quality), each) for each in (mean(v), min(v), max(v)))]
            for rest, v in alike.items()
        ]

    def sentence(self) -> str:
        """How many cells there are of each state."""
        counts = {state: sum(cell.outcome.state is state for cell in self.cells) for state in State}
        told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return f"{len(self.cells)} cells of one grid: {told}; quality on held-out data."

    def to_json(self) -> dict[str, Any]:
        """The content of ``sweep.json``."""
        compared = self.comparison.to_json() if self.comparison is not None else {"quality": None, "runs": []}
        cells = [asdict(cell) for cell in self.cells]
        return {"schema_version": SCHEMA_VERSION, "model": self.model, "cells": cells, **compared}

    def to_markdown(self) -> str:
        """The content of ``report.md``."""
        seeds = self.over_seeds()
        whys = [f"- {each.name}: {each.outcome.state}: {each.outcome.why}" for each in self.cells if each.outcome.why]
        parts = [f"# A sweep over {_last(self.model)}", self.sentence(), table(*self.rows())]
        parts += [table(*seeds)] if seeds[1] else []
        parts += ["\n".join(whys)] if whys else []
        commands = "\n".join(f"    {cell.command}" for cell in self.cells)
        return "\n\n".join([*parts, f"Each cell by itself:\n\n{commands}"]) + "\n"

    def page(self) -> str:
        """The content of ``report.html``."""
        links = {cell.name: f"{cell.name}/report.html" for cell in self.cells if cell.name in self.runs}
        compared = self.comparison.to_json() if self.comparison is not None else None
        empty = {"quality": None, "runs": [{"source": self.model, "latency_ms": {}}]}
        return comparison_page(compared or empty, *self.rows(), self.sentence(), links)

    def write(self, folder: Path) -> None:
        """Write ``sweep.json``, ``report.md`` and ``report.html``."""
        texts = json.dumps(self.to_json(), indent=1, default=str) + "\n", self.to_markdown(), self.page()
        for name, text in zip(REPORTS, texts, strict=True):
            write_text(folder / name, text)


def _cell(sweep: SweepOptions, folder: SweepFolder, cell: Cell) -> CellReport:
    outcome, command = folder.outcome(cell), folder.command(sweep, cell)
    return CellReport(number=cell.number, name=cell.name, values=cell.values, outcome=outcome, command=command)


def _key(run: ComparedRun) -> str:
    return Path(run.folder).name if run.ratio else "dense"


def _numbers(run: ComparedRun, quality: str | None) -> list[str]:
    shown = show_measure(quality, run.measures[quality]) if quality is not None else "–"
    return [f"{run.ratio:.1%}", f"{run.parameters:,}", shown]


def _last(path: str) -> str:
    return path.rstrip(os.sep).rpartition(os.sep)[2]
