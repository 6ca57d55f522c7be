"""Progress as plain lines at intervals: where there is no terminal, and through ``logging`` in Python."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from lpc.progress.journey import Clock, Journey, Leg, Standing, clocked

INTERVAL = 30.0
"""Seconds between two lines."""


class Lines:
    """A Progress that says a line every ``interval`` seconds (default: ``INTERVAL``), while it is told anything.

    ``tick`` has it look at the clock in between. What is over sooner says nothing.
    """

    def __init__(
        self, say: Callable[[str], None], interval: float | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.journey = Journey(clock)
        self._say, self._clock = say, clock
        self._interval = INTERVAL if interval is None else interval
        self._said = clock()

    def expect(self, stages: Sequence[Leg]) -> None:
        """What is to come from now on."""
        self.journey.expect(stages)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note, and say it where it is time."""
        self.journey(stage, done, total)
        self.tick()

    def tick(self) -> None:
        """Say where the run stands if it is time."""
        now = self._clock()
        if now - self._said < self._interval:
            return
        standing = self.journey.standing()
        if standing is not None:
            self._said = now
            self._say(line(standing))


def line(standing: Standing) -> str:
    """Where a run stands, on one line."""
    steps = f" {standing.done}/{standing.total}" if standing.total > 1 else ""
    left = "time left not known yet" if standing.left is None else f"about {clocked(standing.left)} left"
    return f"{standing.stage}{steps}, {clocked(standing.elapsed)} elapsed, {left}"


def logged(clock: Clock = time.monotonic) -> Lines:
    """Lines of the level INFO of the logger ``lpc``."""
    return Lines(logging.getLogger("lpc").info, clock=clock)
