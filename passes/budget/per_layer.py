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

from passes.budget.bundles import Bundle, by_dimension
from passes.budget.meter import Meter
from passes.graph import PruningGraph
from passes.options import Limit

Array = NDArray[np.float64]

EXCHANGES = 400
"""Exchanges at most; each raises the importance kept, so they end by themselves, mostly after a few."""


@dataclass
class LayerAllocation:
    """Counts a bundle that keep as much importance as the greedy search finds within the limits.

    ``scores`` [units] a dimension must be comparable across dimensions (``passes.budget.comparison``); the best units
    of each dimension are what its count keeps. ``polish``: also give back and exchange; for a final result only.

    Tables are [bundles, counts], of importance kept and for each limit of cost saved against dense; ``_now`` points at
    the current count of each bundle. Rows are padded on the right with their last entry, which is never a step.
    """

    bundles: Sequence[Bundle]
    meter: Meter
    limits: Sequence[Limit]
    scores: Mapping[str, torch.Tensor]
    polish: bool = True
    _values: Array = field(init=False, repr=False)
    _savings: Array = field(init=False, repr=False)
    _now: NDArray[np.int64] = field(init=False, repr=False)
    _used: Array = field(init=False, repr=False)
    _bounds: Array = field(init=False, repr=False)
    _near: list[list[int]] = field(init=False, repr=False)
    _parts: list[PruningGraph] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        widest = max(len(bundle.counts) for bundle in self.bundles)
        self._now = np.array([len(bundle.counts) - 1 for bundle in self.bundles])
        self._values = np.stack([_padded(self._value_of(bundle), widest) for bundle in self.bundles])
        names = {bundle.name: index for index, bundle in enumerate(self.bundles)}
        near = neighbours(self.bundles)
        self._near = [[names[other.name] for other in near[bundle.name]] for bundle in self.bundles]
        self._parts = [self.meter.graph.part(bundle.dimensions) for bundle in self.bundles]
        self._savings = np.zeros((len(self.limits), len(self.bundles), widest))
        for index in range(len(self.bundles)):
            self._set_savings(index)
        self._bounds = np.array([limit.bound for limit in self.limits])
        kept = self._kept()
        self._used = np.array([self.meter.measure(limit.measure, kept) for limit in self.limits], dtype=np.float64)

    def counts(self) -> dict[str, int] | None:
        """The counts, or None if even the smallest model is beyond a limit."""
        while (self._used > self._bounds).any():
            step = self._cheapest()
            if step is None:
                return None
            self._move(*step)
        if self.polish:
            self._give_back()
            self._exchange()
        return self._named()

    @property
    def value(self) -> float:
        """The importance kept by the counts as they are now."""
        return float(self._at_now(self._values).sum())

    def _named(self) -> dict[str, int]:
        return {bundle.name: bundle.counts[now] for bundle, now in zip(self.bundles, self._now, strict=True)}

    def _kept(self) -> dict[str, int]:
        return by_dimension(self.bundles, self._named())

    def _at_now(self, table: Array) -> Array:
        """The entries of [..., bundles, counts] at the current counts: [..., bundles]."""
        entries: Array = np.take_along_axis(table, self._now[:, None] + np.zeros((*table.shape[:-1], 1), int), -1)
        return entries[..., 0]

    def _value_of(self, bundle: Bundle) -> Array:
        """The importance that each allowed count keeps: its best units in every dimension of the bundle."""
        total = np.zeros(bundle.size + 1)
        for dimension in bundle.dimensions:
            ranked = self.scores[dimension.name].double().sort(descending=True).values.clamp_min(0).numpy()
            total[1:] += np.cumsum(ranked)
        return total[list(bundle.counts)]

    def _set_savings(self, index: int) -> None:
        """Fill in what going from the dense count to each allowed count saves, the other bundles being as now."""
        bundle, part, kept = self.bundles[index], self._parts[index], self._kept()
        for row, limit in enumerate(self.limits):
            saved = self.meter.savings(limit.measure, bundle, part, kept)
            self._savings[row, index] = _padded(saved, self._savings.shape[2])

    def _differences(self) -> tuple[Array, Array]:
        """What every count would gain in importance [bundles, counts] and save in cost [limits, ...] against now."""
        gains = self._values - self._at_now(self._values)[:, None]
        saved = self._savings - self._at_now(self._savings)[..., None]
        return gains, saved

    def _columns(self) -> NDArray[np.int64]:
        return np.arange(self._values.shape[1])[None, :]

    def _cheapest(self) -> tuple[int, int] | None:
        """The step down that loses the least importance for the cost that must go; of equal ones the smallest."""
        gains, saved = self._differences()
        excess = self._used - self._bounds
        needed = excess > 0
        worth = np.minimum(saved[needed] / excess[needed, None, None], 1.0).sum(0)
        useful = (worth > 0) & (self._columns() < self._now[:, None])
        if not useful.any():
            return None
        prices = np.where(useful, -gains / np.where(useful, worth, 1.0), np.inf)[:, ::-1]
        bundle, column = np.unravel_index(int(np.argmin(prices)), prices.shape)
        return int(bundle), prices.shape[1] - 1 - int(column)

    def _move(self, index: int, to: int) -> None:
        """Set a bundle's count and bring costs up to date."""
        self._used = self._used - (self._savings[:, index, to] - self._savings[:, index, self._now[index]])
        self._now[index] = to
        for other in self._near[index]:
            self._set_savings(other)

    def _fitting(self, saved: Array) -> NDArray[np.bool_]:
        """Where the limits hold once [limits, bundles, counts] is saved, to the rounding of sums."""
        left = self._used[:, None, None] - saved
        holds: NDArray[np.bool_] = np.all(left <= self._bounds[:, None, None] * (1 + 1e-12), axis=0)
        return holds & (self._columns() > self._now[:, None]) & self._real()

    def _real(self) -> NDArray[np.bool_]:
        """Where the tables are not padding."""
        return self._columns() < np.array([len(bundle.counts) for bundle in self.bundles])[:, None]

    def _give_back(self) -> None:
        """Raise counts while anything fits, the step with the largest gain of importance first."""
        while True:
            gains, saved = self._differences()
            fitting = self._fitting(saved)
            if not fitting.any():
                return
            best = int(np.argmax(np.where(fitting, gains, -np.inf)))
            self._move(*map(int, np.unravel_index(best, gains.shape)))

    def _exchange(self) -> None:
        """Lower one bundle by a step and raise another as far as that allows, while importance is gained."""
        for _ in range(EXCHANGES):
            best = max(self._exchanges(), key=lambda exchange: exchange[0], default=None)
            if best is None:
                return
            _, giver, taker, to = best
            self._move(giver, int(self._now[giver]) - 1)
            self._move(taker, to)
            self._give_back()

    def _exchanges(self) -> Iterator[tuple[float, int, int, int]]:
        """For each bundle that can give, the exchange that gains most: the gain, giver, taker and its new count."""
        gains, saved = self._differences()
        floor = 1e-12 * max(self.value, 1e-300)
        for giver in range(len(self.bundles)):
            lower = int(self._now[giver]) - 1
            if lower < 0:
                continue
            fitting = self._fitting(saved + saved[:, giver, lower][:, None, None])
            fitting[[giver, *self._near[giver]]] = False
            total = np.where(fitting, gains + gains[giver, lower], -np.inf)
            best = int(np.argmax(total))
            taker, to = map(int, np.unravel_index(best, total.shape))
            if total[taker, to] > floor:
                yield float(total[taker, to]), giver, taker, to


def _padded(row: Array, length: int) -> Array:
    return np.pad(row, (0, length - len(row)), mode="edge")


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
