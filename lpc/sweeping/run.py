"""sweep(): every cell in a process of its own, as many at once as there is room for; then the report."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lpc.options import Cell, SweepOptions
from lpc.progress import share_told, tell_share
from lpc.sweeping.cell import SETTLED
from lpc.sweeping.early import check_early_stopping
from lpc.sweeping.folder import DECLARATION, Outcome, State, SweepFolder
from lpc.sweeping.report import SweepReport
from passes.errors import OptionError
from passes.options import check_loggers, from_dict
from passes.pipeline import Progress, silent
from passes.places import check_file
from passes.stored import check_model

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0
"""A process that is asked to end has so long to keep what it has done."""
STAGE = "percent of all cells"
TAIL_BYTES = 4096
"""Of what a cell printed, where its last word of its progress stands."""


def sweep(
    declaration: SweepOptions | Mapping[str, object] | str | Path,
    out: str | Path = "sweep-out",
    *,
    jobs: int = 1,
    gather: bool = False,
    progress: Progress = silent,
) -> SweepReport:
    """Run every cell of a sweep that is not finished, ``jobs`` at once, and write the report of all into ``out``.

    ``declaration`` is that of ``docs/sweep.md``, as a file, as plain values or as ``SweepOptions``. With ``gather``
    nothing is run: the report is of what is there. A cell that fails is told there, and does not end the sweep.

    Raises OptionError, MissingFileError and DataError before any work for what the declaration says, OutputError for a
    folder that cannot be written.
    """
    if jobs < 1:
        raise OptionError(f"jobs must be at least 1, got {jobs}")
    asked, folder = declared(declaration), SweepFolder(path=Path(out))
    begun(asked, folder)
    if not gather:
        _run_all(asked, folder, jobs, progress)
    report = SweepReport.of(asked, folder)
    report.write(folder.path)
    return report


def declared(declaration: SweepOptions | Mapping[str, object] | str | Path) -> SweepOptions:
    """The declaration, read if it is a file."""
    if isinstance(declaration, SweepOptions):
        return declaration
    return from_dict(SweepOptions, declaration) if isinstance(declaration, Mapping) else SweepOptions.read(declaration)


def begun(asked: SweepOptions, folder: SweepFolder) -> None:
    """Begin a sweep, or go on with it. Raises, before anything is written, for what no cell could be run with."""
    check_early_stopping(asked.early_stopping)
    for cell in asked.cells:
        check_loggers(cell.options.tune.report_to)
    check_model(asked.model, weights=True)
    for each in asked.data:
        check_file(each, "a text, a .jsonl file or a saved data set under data")
    folder.begin(asked)


def _run_all(asked: SweepOptions, folder: SweepFolder, jobs: int, progress: Progress) -> None:
    waiting = [cell for cell in asked.cells if folder.outcome(cell).state not in SETTLED]
    total = len(waiting)

    def tell() -> None:
        """Of the cells at work as much is done as they say."""
        at_work = sum(share_told(each.told(folder)) for each in running.cells.values())
        tell_share(progress, STAGE, (total - len(waiting) - len(running.cells) + at_work) / total)

    with processes(folder, jobs) as running:
        while waiting or running.cells:
            while waiting and len(running.cells) < jobs:
                running.start(waiting.pop(0))
            running.wait(tell)
    tell_share(progress, STAGE, 1.0)


@dataclass(frozen=True)
class Running:
    """A cell at work, and where in its log its process began."""

    cell: Cell
    process: subprocess.Popen[bytes]
    begun_at: int

    def told(self, folder: SweepFolder) -> str:
        """The last of what it printed."""
        with folder.beside(self.cell, ".log").open("rb") as log:
            log.seek(max(self.begun_at, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode(errors="replace")


class _Processes:
    """The processes at work, by the place that each has: 0 to one less than the jobs."""

    def __init__(self, folder: SweepFolder, jobs: int, words: Callable[[SweepFolder, Cell], list[str]]) -> None:
        self._folder, self._jobs, self._words = folder, jobs, words
        self.cells: dict[int, Running] = {}

    def start(self, cell: Cell) -> None:
        """Start the process of a cell."""
        place = next(number for number in range(self._jobs) if number not in self.cells)
        with self._folder.beside(cell, ".log").open("ab") as log:
            begun_at = log.tell()
            started = subprocess.Popen(
                self._words(self._folder, cell),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **_room(place, self._jobs)},
                start_new_session=True,
            )
        self.cells[place] = Running(cell, started, begun_at)

    def wait(self, tell: Callable[[], None] = lambda: None) -> None:
        """Wait for one to end; one that says nothing of its outcome has failed, unless another sweep has its cell.

        ``tell`` is called while it waits.
        """
        while not (ended := [place for place, each in self.cells.items() if each.process.poll() is not None]):
            tell()
            time.sleep(POLL_SECONDS)
        for place in ended:
            running = self.cells.pop(place)
            cell = running.cell
            found = self._folder.outcome(cell)
            if found.state is State.OPEN and (holder := self._folder.held(cell)):
                logger.warning("the cell %s is left to who is at it: %s", cell.name, holder)
                continue
            if found.state is State.OPEN:
                found = Outcome(state=State.FAILED, why=f"its process ended with {running.process.returncode}")
                self._folder.note(cell, found)
            if found.state is State.FAILED:
                log = self._folder.beside(cell, ".log")
                logger.warning("the cell %s failed, and the sweep goes on: %s (%s)", cell.name, found.why, log)

    def end(self) -> None:
        """Ask all to end, and let them keep what they have done."""
        for each in self.cells.values():
            each.process.terminate()
        for each in self.cells.values():
            try:
                each.process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                each.process.kill()


def _words(folder: SweepFolder, cell: Cell) -> list[str]:
    """The command that runs a cell."""
    place = str(folder.path)
    return [sys.executable, "-m", "lpc", "sweep", f"{place}/{DECLARATION}", "--out", place, "--cell", cell.name]


@contextmanager
def processes(
    folder: SweepFolder, jobs: int, words: Callable[[SweepFolder, Cell], list[str]] = _words
) -> Iterator[_Processes]:
    """Processes that are all at their end when the block is; ``words`` are the command of a cell."""
    running = _Processes(folder, jobs, words)
    try:
        yield running
    finally:
        running.end()


def _room(place: int, jobs: int) -> dict[str, str]:
    """What a process gets of the machine: its share of the cores, and of several GPUs one, unless that was said."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    seen = torch.cuda.device_count()
    if seen > 1:
        names = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(seen)))).split(",")
        found["CUDA_VISIBLE_DEVICES"] = names[place % len(names)]
    return found
