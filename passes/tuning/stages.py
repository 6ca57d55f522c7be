"""Stages: what a tuning run does step by step, on the way to one target or through several, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise

import torch

from passes.budget import Scores, Solver
from passes.errors import OptionError
from passes.graph import Masks
from passes.options import Layout, Schedule, SnapshotOptions, cubic
from passes.tuning.mask_path import MaskPath


def staged_run(
    snapshots: SnapshotOptions, last: Solver, schedule: Schedule, steps: int, *, revival: bool = True
) -> StagedRun:
    """What a run is to do at each step; ``last`` solves its own target, the last ratio's.

    Raises OptionError if the target is another, if the steps do not suffice, or if without ``revival`` the ratios
    do not nest; and what ``Solver.of`` raises.
    """
    if schedule.one_shot:
        raise OptionError("snapshots are left on the way to a target, and a one-shot schedule has none")
    return StagedRun(stages(_solvers(snapshots, last), schedule, steps, snapshots.cooldown), revival=revival)


def _solvers(snapshots: SnapshotOptions, last: Solver) -> tuple[Solver, ...]:
    target, meter, ratios = last.target, last.meter, snapshots.ratios
    if target.ratio is None:
        raise OptionError(
            f"snapshots are taken at ratios of the parameters, and the target is a budget of "
            f"{', '.join(target.wanted.asked)}: make one run for each budget"
        )
    if target.ratio != ratios[-1]:
        raise OptionError(f"the last snapshot ratio, {ratios[-1]}, must be the target's, {target.ratio}")
    earlier = [Solver.of(replace(target, ratio=ratio), meter.graph, meter.latency) for ratio in ratios[:-1]]
    return (*earlier, last)


@dataclass(frozen=True)
class Stage:
    """One target on the way.

    At each of the ``events``, (step, share of the target that is gone from that step on), the masks are set anew; from
    the last of them to the ``end`` they rest, and the adapters are tuned. Steps count finished optimizer steps.
    """

    solver: Solver
    events: Sequence[tuple[int, float]]
    end: int


def one_stage(solver: Solver, schedule: Schedule, steps: int) -> tuple[Stage, ...]:
    """The whole run for one target."""
    return (Stage(solver, schedule.events(steps), steps),)


def stages(solvers: Sequence[Solver], schedule: Schedule, steps: int, cooldown: int | None) -> tuple[Stage, ...]:
    """A stage a ratio: a ramp from the last ratio on along a cubic curve of cost, then ``cooldown`` steps.

    The steps that warm-up and cool-downs leave are divided among the ramps in proportion to what they remove. Of
    ``schedule`` warm-up and ``every`` count, and its cool-down where ``cooldown`` is None. With one ratio and no
    ``cooldown`` this is ``one_stage``. Raises OptionError if the steps do not suffice.
    """
    ratios = [solver.target.ratio or 0.0 for solver in solvers]
    first, rest = _divided(schedule, steps, len(ratios), cooldown)
    bounds = [0, *(round((steps - first - len(ratios) * (rest + 1)) * ratio / ratios[-1]) for ratio in ratios)]
    found, start = [], first
    for solver, (before, after), (low, high) in zip(solvers, pairwise([0.0, *ratios]), pairwise(bounds), strict=True):
        last = start + 1 + high - low
        curve = cubic(start, last, schedule.every)
        events = [(step, share + (1 - share) * before / after) for step, share in curve]  # the last is exactly 1
        found.append(Stage(solver, events, last + rest))
        start = last + rest
    return tuple(found)


def _divided(schedule: Schedule, steps: int, ratios: int, cooldown: int | None) -> tuple[int, int]:
    """The step of the first event, and the cool-down of each ratio, in steps; a ramp has one step at least."""
    asked = cooldown or 1
    first = schedule.first(steps)
    if steps - first < ratios * (asked + 1):
        needed = next(many for many in count(steps + 1) if many - schedule.first(many) >= ratios * (asked + 1))
        raise OptionError(
            f"{steps} steps are too few for {ratios} snapshots: after {first} of warm-up each needs {asked} of "
            f"cool-down and at least 1 to get there; take {needed} steps or more, or fewer snapshots"
        )
    if cooldown is None:
        cooldown = min((steps - schedule.last(steps)) // ratios, (steps - first) // ratios - 1)
    return first, max(1, cooldown)


class StagedRun:
    """The masks and the snapshots that are due after each step of a run through stages.

    ``ends`` are the last steps of the stages with their ratios, ``lengths`` are the stages' own in steps, and
    ``last_event`` is the step of the last event, 0 if there is none.
    """

    def __init__(self, stages: Sequence[Stage], *, revival: bool = True) -> None:
        """Raises OptionError if without ``revival`` a later target would need units that an earlier one removed."""
        self._events: dict[int, tuple[MaskPath, int]] = {}
        before: Solver | None = None
        for stage in stages:
            if before is not None and not revival:
                _check_nested(before, stage.solver)
            path = MaskPath(stage.solver, [share for _, share in stage.events], before)
            self._events |= {step: (path, number) for number, (step, _) in enumerate(stage.events)}
            before = stage.solver
        self.last_event = max(self._events, default=0)
        self.ends = {stage.end: stage.solver.target.ratio for stage in stages}
        self.lengths = [after - before for before, after in pairwise([0, *self.ends])]

    def due(self, step: int) -> bool:
        """Whether there is an event after a step."""
        return step in self._events

    def counts(self, step: int, every: int, memory: int | None) -> bool:
        """Whether what is seen at a step counts for an event: it is every so many steps before the next one, and among
        the latest ``memory`` of these (None: all).
        """
        coming = next((event for event in self._events if event >= step), None)
        if coming is None or (coming - step) % every:
            return False
        return memory is None or (coming - step) // every < memory

    def masks(self, step: int, scores: Scores, *, among: Masks | None = None) -> dict[str, torch.Tensor] | None:
        """The masks from a step on, None if they stay as they are. ``among`` as for ``best_units``."""
        if step not in self._events:
            return None
        path, number = self._events[step]
        return path.masks(number, scores, among=among)


def _check_nested(before: Solver, after: Solver) -> None:
    if after.target.layout is not Layout.UNIFORM:
        return
    for name, kept in after.uniform_counts.items():
        if kept > before.uniform_counts[name]:
            raise OptionError(
                f"ratio {after.target.ratio} keeps {kept} {name} a layer and {before.target.ratio} only "
                f"{before.uniform_counts[name]}: allow revival, or leave out one of the two"
            )
