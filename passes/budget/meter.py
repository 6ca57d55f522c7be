"""The meter: what any choice of kept units costs in each measure of a budget, and whether it is within the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from passes.budget.latency import LatencyModel
from passes.errors import OptionError
from passes.graph import Kept, PruningGraph
from passes.options import MEASURES, Limit

Costs = dict[str, float]
"""An amount a measure."""


@dataclass(frozen=True)
class Meter:
    """Measures plans of one model: parameters, MACs and bytes in closed form, latency by a model of it."""

    graph: PruningGraph
    latency: LatencyModel | None = None
    base: Kept = field(default_factory=dict)
    """What is kept where a question does not say it: the layers and blocks that stay."""

    @cached_property
    def dense(self) -> Costs:
        """What the dense model costs."""
        return self.costs({})

    def costs(self, kept: Kept) -> Costs:
        """What is left, in every measure there is; latency only with a model of it."""
        kept = {**self.base, **kept}
        cost = self.graph.cost(kept)
        found: Costs = {measure: getattr(cost, measure) for measure in MEASURES if measure != "latency"}
        if self.latency is not None:
            found["latency"] = self.latency.seconds(kept)
        return found

    def measure(self, measure: str, kept: Kept) -> float:
        """What is left in one measure. Raises OptionError for latency without a model of it."""
        kept = {**self.base, **kept}
        if measure == "parameters":
            return self.graph.parameters(kept)
        if measure != "latency":
            return float(getattr(self.graph.cost(kept), measure))
        if self.latency is None:
            raise OptionError("a budget of latency needs a latency model of this machine: give latency=...")
        return self.latency.seconds(kept)

    def fits(self, kept: Kept, limits: Sequence[Limit]) -> bool:
        """Whether all limits hold."""
        return all(self.measure(limit.measure, kept) <= limit.bound for limit in limits)
