"""Progress as plain lines at intervals: where there is no terminal, and through ``logging`` in Python."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence

from lpc.progress.journey import Clock, Journey, Leg, Standing, clocked

INTERVAL = 30.0
"""Seconds between two lines."""
CLOCKS = re.compile(r"(\d+):(\d\d):(\d\d) elapsed, about (\d+):(\d\d):(\d\d) left$", re.MULTILINE)
"""How a line ends that knows what is left."""


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


def share_told(text: str) -> float:
    """How much of a run was done, 0 to 1, by the last line of its text that knew what was left; 0 without one."""
    *_, last = [None, *CLOCKS.finditer(text)]
    if last is None:
        return 0.0
    numbers = [int(each) for each in last.groups()]
    elapsed, left = (3600 * hours + 60 * minutes + rest for hours, minutes, rest in (numbers[:3], numbers[3:]))
    return elapsed / max(elapsed + left, 1)


def logged(clock: Clock = time.monotonic) -> Lines:
    """Lines of the level INFO of the logger ``lpc``."""
    return Lines(logging.getLogger("lpc").info, clock=clock)
