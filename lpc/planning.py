"""Plans as data: a plan from saved scores, and what two plans have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lpc.latency import latency_for
from lpc.source import ModelLike, load_source
from passes.budget import Solver
from passes.criteria import SavedScores
from passes.decide import DecidePass
from passes.errors import PlanError
from passes.graph import Plan
from passes.models import fingerprint
from passes.options import Layout, Target
from passes.pipeline import Program, Progress, plain, silent
from passes.trace import TracePass, options_for


def plan(
    model: ModelLike,
    importance: SavedScores | str | Path,
    target: Target,
    *,
    custom_code: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Plan:
    """A plan for a target from the scores of an earlier run, without data and without training.

    ``model`` is the source that the scores were measured on; ``custom_code`` as in ``TraceOptions``. Raises PlanError
    if the scores are another model's, and what ``compress`` raises for the target.
    """
    saved = importance if isinstance(importance, SavedScores) else SavedScores.load(importance)
    source = load_source(model, trust_remote_code=trust_remote_code)
    actual = fingerprint(source.model)
    if actual != saved.source:
        raise PlanError(
            f"the scores are of the model with fingerprint {saved.source[:12]}, {source.name} has {actual[:12]}: "
            "load the model that they were measured on"
        )
    options = options_for(saved.scores, custom_code=custom_code or target.layout is Layout.PER_LAYER)
    program = TracePass(options)(Program.start(source.model)).program
    saved.check(program.traced)
    latency = latency_for(source.model, program.traced, target.wanted, progress)
    masks = Solver.of(target, program.traced, latency).masks(saved.scores)
    decide = DecidePass(target, saved.criterion, latency=latency)
    decided = decide(replace(program, masks=masks, scores=saved.scores)).program.plan
    assert decided is not None
    return replace(decided, scored_by=dict(saved.scored_by))


@dataclass(frozen=True, kw_only=True)
class DimensionDifference:
    """One dimension of two plans: how many units each keeps, and how many of them both do."""

    name: str
    first: int
    second: int
    both: int

    @property
    def overlap(self) -> float:
        """Units that both keep, of those that either keeps; 1 where neither keeps any."""
        either = self.first + self.second - self.both
        return self.both / either if either else 1.0


@dataclass(frozen=True, kw_only=True)
class PlanDifference:
    """What two plans have in common; ``fields`` are the other entries that differ, as (first, second)."""

    same_source: bool
    parameters: tuple[int, int]
    fields: Mapping[str, tuple[Any, Any]]
    dimensions: tuple[DimensionDifference, ...]

    @property
    def is_same_decision(self) -> bool:
        """Whether both keep the same units of the same source."""
        return self.same_source and all(d.overlap == 1 for d in self.dimensions)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = [{**plain(d), "overlap": d.overlap} for d in self.dimensions]
        return {**plain(self), "dimensions": rows, "same_decision": self.is_same_decision}


COMPARED = ("family", "layout", "budget", "criterion", "options")


def diff(first: Plan, second: Plan) -> PlanDifference:
    """Compare two plans. Raises PlanError if they have not the same dimensions."""
    odd = sorted(set(first.kept) ^ set(second.kept))
    if odd:
        raise PlanError(f"the plans cannot be compared: only one of them has the dimension {odd[0]}")
    entries = {name: (getattr(first, name), getattr(second, name)) for name in COMPARED}
    return PlanDifference(
        same_source=first.source == second.source,
        parameters=(first.target_parameters, second.target_parameters),
        fields={name: pair for name, pair in entries.items() if pair[0] != pair[1]},
        dimensions=tuple(_difference(name, first.kept[name], second.kept[name]) for name in first.kept),
    )


def _difference(name: str, first: tuple[int, ...], second: tuple[int, ...]) -> DimensionDifference:
    return DimensionDifference(name=name, first=len(first), second=len(second), both=len(set(first) & set(second)))
