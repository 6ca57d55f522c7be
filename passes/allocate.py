"""The layout per layer: units compete across layers and dimensions by importance per cost.

From the dense model on, the cheapest step is taken until all limits hold: the one that loses the least importance for
the cost that it saves, cost being counted in shares of what must still go, over the limits that do not hold yet. A step
lowers one bundle to any of its smaller counts, so that wide rounding and latency, which does not fall evenly, are seen
as they are. Costs are exact: where dimensions share parameters (experts and the channels inside them), the savings of a
bundle are counted anew when one that it shares with changes. At the end, what still fits is given back, and single
exchanges between two bundles are made while they help. tests/passes/test_allocate.py holds this against the optimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from passes.budget import Limit
from passes.bundles import Bundle, by_dimension
from passes.graph import PruningGraph
from passes.meter import Meter

Array = NDArray[np.float64]

EXCHANGES = 400
"""Exchanges at most; each raises the importance kept, so they end by themselves, mostly after a few."""


@dataclass
class LayerAllocation:
    """Counts a bundle that keep as much importance as the greedy search finds within the limits.

    ``scores`` [units] a dimension must be comparable across dimensions (``passes.comparison``); the best units of each
    dimension are what its count keeps. ``polish``: also give back and exchange; needed for a final result only.
    """

    bundles: Sequence[Bundle]
    meter: Meter
    limits: Sequence[Limit]
    scores: Mapping[str, torch.Tensor]
    polish: bool = True
    _values: dict[str, Array] = field(init=False, repr=False)
    _savings: dict[str, Array] = field(init=False, repr=False)
    _counts: dict[str, int] = field(init=False, repr=False)
    _used: Array = field(init=False, repr=False)
    _near: Mapping[str, tuple[Bundle, ...]] = field(init=False, repr=False)
    _parts: Mapping[str, PruningGraph] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._counts = {bundle.name: bundle.counts[-1] for bundle in self.bundles}
        self._values = {bundle.name: self._value_of(bundle) for bundle in self.bundles}
        self._near = neighbours(self.bundles)
        self._parts = {bundle.name: self.meter.graph.part(bundle.dimensions) for bundle in self.bundles}
        self._savings = {bundle.name: self._savings_of(bundle) for bundle in self.bundles}
        self._used = self._measured()

    def counts(self) -> dict[str, int] | None:
        """The counts, or None if even the smallest model is beyond a limit."""
        while (self._used > self._bounds).any():
            step = min(self._steps(), key=lambda step: step[0], default=None)
            if step is None:
                return None
            self._move(step[1], step[2])
        if self.polish:
            self._give_back()
            self._exchange()
        return dict(self._counts)

    @property
    def value(self) -> float:
        """The importance kept by the counts as they are now."""
        return float(sum(self._kept_value(bundle, self._counts[bundle.name]) for bundle in self.bundles))

    @property
    def _bounds(self) -> Array:
        return np.array([limit.bound for limit in self.limits])

    def _kept_value(self, bundle: Bundle, count: int) -> float:
        return float(self._values[bundle.name][bundle.counts.index(count)])

    def _value_of(self, bundle: Bundle) -> Array:
        """The importance that each allowed count keeps: its best units in every dimension of the bundle."""
        total = np.zeros(bundle.size + 1)
        for dimension in bundle.dimensions:
            ranked = self.scores[dimension.name].double().sort(descending=True).values.clamp_min(0).numpy()
            total[1:] += np.cumsum(ranked)
        return total[list(bundle.counts)]

    def _kept(self, changes: Mapping[str, int] | None = None) -> dict[str, int]:
        return by_dimension(self.bundles, {**self._counts, **(changes or {})})

    def _measured(self) -> Array:
        kept = self._kept()
        return np.array([self.meter.measure(limit.measure, kept) for limit in self.limits])

    def _savings_of(self, bundle: Bundle) -> Array:
        """What going from the dense count to each allowed count saves, [limits, counts], the others being as now."""
        rows = []
        for limit in self.limits:
            if limit.measure == "latency":
                assert self.meter.latency is not None
                seconds = [self._seconds(bundle, count) for count in bundle.counts]
                rows.append(np.array([seconds[-1] - each for each in seconds]))
            else:
                rows.append(self._unit_cost(bundle, limit) * (bundle.size - np.array(bundle.counts)))
        return np.array(rows)

    def _unit_cost(self, bundle: Bundle, limit: Limit) -> float:
        """What one unit less in every dimension of the bundle saves: costs are linear in one bundle's count."""
        part, kept = self._parts[bundle.name], self._kept()
        names = [dimension.name for dimension in bundle.dimensions]
        both = [part.cost({**kept, **dict.fromkeys(names, count)}) for count in (bundle.size, bundle.size - 1)]
        return float(getattr(both[0], limit.measure) - getattr(both[1], limit.measure))

    def _seconds(self, bundle: Bundle, count: int) -> float:
        assert self.meter.latency is not None
        return sum(self.meter.latency.dimension_seconds(d.name, count) for d in bundle.dimensions)

    def _steps(self) -> Iterator[tuple[float, Bundle, int]]:
        """The best step of every bundle: importance lost for the cost saved, the bundle and its new count."""
        excess = self._used - self._bounds
        needed = excess > 0
        for bundle in self.bundles:
            now = bundle.counts.index(self._counts[bundle.name])
            if now == 0:
                continue
            values, savings = self._values[bundle.name], self._savings[bundle.name]
            lost = values[now] - values[:now]
            saved = (savings[:, :now] - savings[:, now : now + 1])[needed] / excess[needed, None]
            worth = np.minimum(saved, 1.0).sum(0)
            useful = worth > 0
            if useful.any():
                prices = np.where(useful, lost / np.where(useful, worth, 1.0), np.inf)
                # Of equal prices the smallest step: the largest count.
                best = now - 1 - int(np.argmin(prices[::-1]))
                yield float(prices[best]), bundle, bundle.counts[best]

    def _move(self, bundle: Bundle, count: int) -> None:
        """Set a bundle's count and bring costs up to date."""
        self._used = self._used - self._difference(bundle, count)
        self._counts[bundle.name] = count
        for other in self._near[bundle.name]:
            self._savings[other.name] = self._savings_of(other)

    def _difference(self, bundle: Bundle, count: int) -> Array:
        """What going to a count saves, a limit."""
        savings, now = self._savings[bundle.name], bundle.counts.index(self._counts[bundle.name])
        difference: Array = savings[:, bundle.counts.index(count)] - savings[:, now]
        return difference

    def _gain(self, bundle: Bundle, count: int) -> float:
        return self._kept_value(bundle, count) - self._kept_value(bundle, self._counts[bundle.name])

    def _fits(self, saved: Array) -> bool:
        """Whether the limits hold once this is saved (spent, where negative), to the rounding of sums."""
        return bool((self._used - saved <= self._bounds * (1 + 1e-12)).all())

    def _raises(self) -> list[tuple[Bundle, int]]:
        return [(b, count) for b in self.bundles for count in b.counts if count > self._counts[b.name]]

    def _give_back(self) -> None:
        """Raise counts while anything fits, the step with the largest gain of importance first."""
        while True:
            fitting = [(b, count) for b, count in self._raises() if self._fits(self._difference(b, count))]
            if not fitting:
                return
            self._move(*max(fitting, key=lambda step: self._gain(*step)))

    def _exchange(self) -> None:
        """Lower one bundle by a step and raise another as far as that allows, while importance is gained."""
        for _ in range(EXCHANGES):
            best = max(self._exchanges(), key=lambda pair: pair[0], default=None)
            if best is None:
                return
            self._move(*best[1])
            self._move(*best[2])
            self._give_back()

    def _exchanges(self) -> Iterator[tuple[float, tuple[Bundle, int], tuple[Bundle, int]]]:
        raises, floor = self._raises(), 1e-12 * max(self.value, 1e-300)
        for giver in self.bundles:
            now = giver.counts.index(self._counts[giver.name])
            if now == 0:
                continue
            lower = giver.counts[now - 1]
            saved, lost = self._difference(giver, lower), -self._gain(giver, lower)
            for taker, count in raises:
                if taker in self._near[giver.name] or taker is giver:
                    continue
                gain = self._gain(taker, count) - lost
                if gain > floor and self._fits(saved + self._difference(taker, count)):
                    yield gain, (giver, lower), (taker, count)


def neighbours(bundles: Sequence[Bundle]) -> dict[str, tuple[Bundle, ...]]:
    """The other bundles that have slices of the same parameters, by a bundle's name."""
    holders: dict[str, dict[str, Bundle]] = {}
    for bundle in bundles:
        for dimension in bundle.dimensions:
            for part in dimension.slices:
                holders.setdefault(part.parameter, {})[bundle.name] = bundle
    found: dict[str, dict[str, Bundle]] = {bundle.name: {} for bundle in bundles}
    for sharing in holders.values():
        for name in sharing:
            found[name] |= {other: bundle for other, bundle in sharing.items() if other != name}
    return {name: tuple(others.values()) for name, others in found.items()}
