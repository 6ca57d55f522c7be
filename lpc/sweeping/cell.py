"""One cell: a compression, whose outcome is written down whatever it is."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from exporters.files import locked, run_folder
from lpc.compression import compress
from lpc.options import Cell, SweepOptions
from lpc.run_folder import RunFolder
from lpc.sweeping.early import judged
from lpc.sweeping.folder import Outcome, State, SweepFolder
from passes.errors import LpcError, StoppedError
from passes.pipeline import Progress, silent, unwatched

SETTLED = (State.FINISHED, State.STOPPED)


def run_cell(sweep: SweepOptions, cell: Cell, folder: SweepFolder, progress: Progress = silent) -> Outcome:
    """Run a cell of a sweep that was begun, or go on with it; one that is finished or was stopped is left as it is.

    What fails with an LpcError is an outcome too. Raises OutputError if another process is at this cell.
    """
    place = folder.output(cell)
    with locked(run_folder(place), f"the cell {cell.name}"):
        found = folder.outcome(cell)
        if found.state in SETTLED:
            return found
        folder.forget(cell)
        try:
            _compress(sweep, cell, folder, progress)
            found = Outcome(state=State.FINISHED)
        except StoppedError as error:
            found = Outcome(state=State.STOPPED, why=str(error))
            RunFolder(path=run_folder(place)).clear()
        except LpcError as error:
            found = Outcome(state=State.FAILED, why=f"{type(error).__name__}: {error}")
        folder.note(cell, found)
        return found


def _compress(sweep: SweepOptions, cell: Cell, folder: SweepFolder, progress: Progress) -> None:
    place, asked = folder.output(cell), sweep.early_stopping
    with nullcontext(unwatched) if asked is None else judged(folder.trials, cell, asked) as watch:
        more: dict[str, Any] = {"run_folder": run_folder(place), "progress": progress, "watch": watch}
        more |= {"export": sweep.export, **cell.options.arguments()}
        result = compress(sweep.model, list(sweep.data) or None, **more)
        result = replace(result, command=folder.command(sweep, cell))
        result.save(place, export=sweep.export, force=True, progress=progress)
