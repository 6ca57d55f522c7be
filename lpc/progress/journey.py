"""A run on its way: which stage it is in, and how long all that is to come will take.

The stages with the seconds that they would take at a nominal speed are told first (``lpc.estimation``). How much slower
or faster this run is than that is measured as it goes, and what is left is scaled by it: nothing is known better than
the work, and nothing worse than the machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from passes.pipeline import Progress

Clock = Callable[[], float]
"""Seconds from some moment on."""

TRUST = 0.02
"""The nominal speed counts as much as so large a share of the run that went at that speed would."""


@dataclass(frozen=True)
class Leg:
    """A stage to come: its name, as its progress tells it, and the seconds that it takes at the nominal speed."""

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands: stage, steps of it that are done, seconds since the start and left (None: not known yet).

    ``now`` is what the clock said.
    """

    stage: str
    done: int
    total: int
    elapsed: float
    left: float | None
    now: float


@dataclass
class Entered:
    """A stage that was begun: when, how far it is and since when, and when it ended (None: not yet)."""

    name: str
    begun: float
    told: float
    done: int = 0
    total: int = 1
    ended: float | None = None
    nominal: float = 0.0

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        return 1.0 if self.ended is not None else min(1.0, self.done / max(self.total, 1))


@dataclass
class Journey:
    """A Progress that knows what is to come, once it was told; other threads may ask it where it stands."""

    clock: Clock = time.monotonic
    stages: list[Entered] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._start, self._coming, self._lock = self.clock(), list[Leg](), threading.RLock()
        self._known = False

    def expect(self, stages: Sequence[Leg]) -> None:
        """What is to come from now on, in order."""
        with self._lock:
            self._coming, self._known = list(stages), True

    def __call__(self, stage: str, done: int, total: int) -> None:
        """A stage has begun (0 of 1), got further, or ended (1 of 1): when all its steps are done it need not have."""
        with self._lock:
            now, current = self.clock(), self.stages[-1] if self.stages else None
            begins = done == 0 and current is not None and current.ended is not None
            if current is None or current.name != stage or begins:
                if current is not None and current.name == stage and current.ended is not None and done:
                    return  # told once more that it has ended
                current = self._enter(stage, now)
            current.told = now
            if (done, total) == (1, 1):
                current.done, current.ended = current.total, now
            elif (done, total) != (0, 1) or current.total <= 1:
                current.done, current.total = done, total

    def _enter(self, stage: str, now: float) -> Entered:
        """Begin a stage: what stood before it in what is to come will not come any more."""
        if self.stages and self.stages[-1].ended is None:
            self.stages[-1].ended = now
        place = next((number for number, each in enumerate(self._coming) if each.name == stage), None)
        entered = Entered(stage, now, now)
        if place is not None:
            entered.nominal = self._coming[place].seconds
            del self._coming[: place + 1]
        self.stages.append(entered)
        return entered

    def standing(self) -> Standing | None:
        """Where the run stands; None before its first word."""
        with self._lock:
            if not self.stages:
                return None
            now, last = self.clock(), self.stages[-1]
            return Standing(
                stage=last.name,
                done=last.done,
                total=last.total,
                elapsed=now - self._start,
                left=self._left(now),
                now=now,
            )

    def _left(self, now: float) -> float | None:
        """Seconds until the end."""
        if not self._known:
            return None
        last, coming = self.stages[-1], sum(each.seconds for each in self._coming)
        nominal = sum(each.nominal * each.share for each in self.stages)
        spent = sum(each.told - each.begun for each in self.stages if each.nominal and each.share)
        trusted = TRUST * (sum(each.nominal for each in self.stages) + coming)
        slowness = (spent + trusted) / (nominal + trusted) if nominal + trusted else 1.0
        return slowness * coming + self._left_of(last, now, slowness)

    def _left_of(self, last: Entered, now: float, slowness: float) -> float:
        """Seconds until the end of the present stage: the more of it is done, the more by its own pace."""
        if last.ended is not None:
            return 0.0
        left = slowness * last.nominal * (1 - last.share)
        if last.share:
            own = (last.told - last.begun) * (1 - last.share) / last.share
            left = last.share * own + (1 - last.share) * left if last.nominal else own
        return max(0.0, left - (now - last.told))


def expect(progress: Progress, stages: Sequence[Leg]) -> None:
    """Tell a Progress what is to come, if it wants to know."""
    told = getattr(progress, "expect", None)
    if callable(told):
        told(stages)


def tell_share(progress: Progress, stage: str, share: float) -> None:
    """Tell how much of a stage that is the whole of a run is done, 0 to 1, in percent; with the first, what is left is
    known by its pace.
    """
    percent = int(100 * share)
    if percent:
        expect(progress, [])
    progress(stage, percent, 100)


def clocked(seconds: float | None) -> str:
    """Seconds as ``h:mm:ss``; ``-:--:--`` where they are not known."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def numbered(stages: Sequence[Entered]) -> Iterator[tuple[str, Entered]]:
    """The stages with names to show: one that came before has its number behind it."""
    seen: dict[str, int] = {}
    for each in stages:
        seen[each.name] = seen.get(each.name, 0) + 1
        yield each.name if seen[each.name] == 1 else f"{each.name} {seen[each.name]}", each
