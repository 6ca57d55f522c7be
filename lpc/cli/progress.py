"""How far a command is: one live view on a terminal, and plain lines at intervals elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lpc.cli import console
from lpc.cli.interruption import check
from passes.ranks import launched

if TYPE_CHECKING:
    from lpc.progress import Journey, Leg
    from passes.pipeline import Progress

TICK_SECONDS = 1.0
REFRESHES = 2
"""Of the live view, a second."""


class Checked:
    """A Progress in front of another one, which ends the command where the user has asked for that."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def expect(self, stages: Sequence[Leg]) -> None:
        """Hand on what is to come."""
        from lpc.progress import expect

        expect(self._progress, stages)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Look for an interruption, then hand on."""
        check()
        self._progress(stage, done, total)


@contextmanager
def progress_shown() -> Iterator[Progress]:
    """A Progress that shows where the command stands, in the first process; the libraries' own bars are off."""
    from transformers.utils import logging as transformers_logging

    from lpc.progress import Journey, Lines

    transformers_logging.disable_progress_bar()
    if launched()[0] or console.is_quiet():
        yield Checked(lambda stage, done, total: None)
        return
    if console.stderr.is_terminal:
        journey = Journey()
        with Live(
            get_renderable=lambda: view(journey), console=console.stderr, transient=True, refresh_per_second=REFRESHES
        ):
            yield Checked(journey)
        return
    lines = Lines(lambda text: console.stderr.print(f"lpc: {text}", markup=False))
    with ticking(lines.tick):
        yield Checked(lines)


@contextmanager
def ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Call ``tick`` every ``TICK_SECONDS`` from another thread, inside the block."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(TICK_SECONDS):
            tick()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def view(journey: Journey) -> Group:
    """A row a stage that was begun, and the whole run below."""
    from lpc.progress import clocked, numbered

    standing = journey.standing()
    if standing is None:
        return Group()
    rows = Table.grid(padding=(0, 1))
    for name, each in numbered(list(journey.stages)):
        seconds = (standing.now if each.ended is None else each.ended) - each.begun
        steps = f"{each.done}/{each.total}" if each.total > 1 else ""
        steps += ", finishing" if steps and each.ended is None and each.done == each.total else ""
        bar = ProgressBar(total=1, completed=each.share, width=32, pulse=each.ended is None and not each.done)
        rows.add_row(Text(f"{name:>14}"), bar, Text(f"{steps:>20}"), Text(clocked(seconds)))
    left = f"about {clocked(standing.left)} left" if standing.left is not None else "time left not known yet"
    return Group(rows, Text(f"{'whole run':>14} {clocked(standing.elapsed)} elapsed, {left}", style="bold"))
