"""The meter: what any choice of kept units costs in each measure of a budget, and whether it is within the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from passes.budget.bundles import Bundle
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

    def dense(self, measures: Sequence[str]) -> Costs:
        """What the dense model costs in these measures. Raises OptionError for latency without a model of it."""
        return {name: self.measure(name, {}) for name in measures}

    def measure(self, name: str, kept: Kept) -> float:
        """What is left in one measure. Raises OptionError for latency without a model of it."""
        amount, kept = MEASURES[name].amount, {**self.base, **kept}
        return self._model.seconds(kept) if amount is None else float(amount(self.graph, kept))

    def fits(self, kept: Kept, limits: Sequence[Limit]) -> bool:
        """Whether all limits hold."""
        return all(self.measure(limit.measure, kept) <= limit.bound for limit in limits)

    def savings(self, name: str, bundle: Bundle, part: PruningGraph, kept: Kept) -> NDArray[np.float64]:
        """What going from the dense count of a bundle to each of its counts saves, all else being as in ``kept``.

        ``part`` is the graph of the bundle's own parameters.
        """
        measure, counts = MEASURES[name], np.array(bundle.counts)
        if measure.amount is None:
            amounts = np.array([self._seconds(bundle, count) for count in bundle.counts])
        elif measure.linear:
            whole, one_less = (measure.amount(part, {**kept, **_at(bundle, bundle.size - less)}) for less in (0, 1))
            amounts = float(whole - one_less) * counts
        else:
            amounts = np.array([self.measure(name, {**kept, **_at(bundle, count)}) for count in bundle.counts])
        saved: NDArray[np.float64] = amounts[-1] - amounts
        return saved

    def _seconds(self, bundle: Bundle, count: int) -> float:
        return sum(self._model.dimension_seconds(dimension.name, count) for dimension in bundle.dimensions)

    @property
    def _model(self) -> LatencyModel:
        if self.latency is None:
            raise OptionError("a budget of latency needs a latency model of this machine: give latency=...")
        return self.latency


def _at(bundle: Bundle, count: int) -> dict[str, int]:
    return dict.fromkeys((dimension.name for dimension in bundle.dimensions), count)
