"""The schedule: when units go, as shares of the target."""

from __future__ import annotations

from dataclasses import dataclass

from passes.errors import OptionError
from passes.options.check import check
from passes.options.option import option


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A cubic curve of *cost* from 0 to the target (Zhu & Gupta, arXiv 1710.01878, eq. 1), in fractions of all steps.

    With ``warmup + cooldown`` = 1 all goes in one event; with ``cooldown`` = 1 (``ONE_SHOT``) before the first step, by
    scores of calibration data (``ScorePass``).
    """

    warmup: float = option(0.05, least=0, below=1, help="Share of the steps before which nothing is masked.")
    cooldown: float = option(
        0.65,
        least=0,
        most=1,
        help="The last share of the steps, in which the final masks stay as they are and the adapters recover.",
    )
    every: int = option(1, least=1, help="Steps between two events.")

    def __post_init__(self) -> None:
        check(self)
        if not self.warmup + self.cooldown <= 1:
            raise OptionError(
                f"warmup {self.warmup} and cooldown {self.cooldown} must be fractions that add up to at most 1"
            )

    @property
    def one_shot(self) -> bool:
        """Whether all goes before the first step."""
        return self.cooldown == 1

    def events(self, steps: int) -> list[tuple[int, float]]:
        """(step, share of the target removed from that step on), ascending; the last share is exactly 1.

        Steps count finished optimizer steps, 1 to ``steps``. None where all goes before the first of them.
        """
        if self.one_shot:
            return []
        return cubic(self.first(steps), self.last(steps), self.every)

    def first(self, steps: int) -> int:
        """The step of the first event."""
        return max(1, round(self.warmup * steps))

    def last(self, steps: int) -> int:
        """The step of the last event."""
        return max(self.first(steps), round((1 - self.cooldown) * steps))


ONE_SHOT = Schedule(warmup=0, cooldown=1)
"""All goes before the first step; the masks are the program's own."""


def cubic(first: int, last: int, every: int) -> list[tuple[int, float]]:
    """(step, share gone from that step on) from the step ``first`` to ``last``, where it is exactly 1."""
    times = [*range(first, last, every), last]
    span = max(1, last - first + every)
    shares = [1 - (1 - (time - first + every) / span) ** 3 for time in times]
    return list(zip(times, [*shares[:-1], 1.0], strict=True))
