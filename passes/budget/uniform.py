"""The uniform layout: the same widths in every layer, chosen without scores so that all limits hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from passes.budget.bundles import Bundle, by_dimension, steps_up
from passes.budget.meter import Meter
from passes.options import Limit

BISECTIONS = 60
"""Halvings of an interval of length 1, down to the rounding of floats."""


@dataclass(frozen=True)
class UniformAllocation:
    """Counts a bundle that meet the limits.

    1. Heads and experts, the coarse units, give the share that all prunable widths together must give, as nearly as
       whole units (that can be built) allow; on a tie the smaller model.
    2. The channels make up the rest: the widest MLPs within the limits, all MLPs giving the same share. If none is
       narrow enough, the next nearest coarse counts are tried.
    3. Whatever still fits is given back, a step at a time, where the least share is kept first.
    """

    bundles: Sequence[Bundle]
    meter: Meter
    limits: Sequence[Limit]

    def counts(self) -> dict[str, int] | None:
        """The counts, or None if even the smallest model is beyond a limit."""
        share = self.common_share()
        coarse = [bundle for bundle in self.bundles if not bundle.kind.is_fine]
        fine = [bundle for bundle in self.bundles if bundle.kind.is_fine]
        for counts in _nearest_first(coarse, share):
            widest = self._widest(fine, counts)
            if widest is not None:
                return self.filled([*coarse, *fine], widest)
        return None

    def balances(self, most: int) -> list[dict[str, int]]:
        """Ways to share what goes between the coarse units and the channels, of equal cost as nearly as counts allow:
        at most ``most``, evenly from those that leave heads and experts whole, the equal share of ``counts`` first.

        Where there are several coarse bundles they give the same share, as nearly as whole units allow.
        """
        equal = self.counts()
        if equal is None:
            return []
        coarse = [bundle for bundle in self.bundles if not bundle.kind.is_fine]
        fine = [bundle for bundle in self.bundles if bundle.kind.is_fine]
        ways: list[dict[str, int]] = []
        for share in sorted({count / bundle.size for bundle in coarse for count in bundle.counts}, reverse=True):
            widest = self._widest(fine, {b.name: _nearest(b, share) for b in coarse})
            way = self.filled([*coarse, *fine], widest) if widest is not None else equal
            if way != equal and way not in ways:
                ways.append(way)
        return [equal, *_evenly(ways, most - 1)]

    def _fits(self, counts: Mapping[str, float]) -> bool:
        whole: dict[str, int] = dict(counts)  # type: ignore[arg-type]  # shares of units while bisecting
        return self.meter.fits(by_dimension(self.bundles, whole), self.limits)

    def common_share(self) -> float:
        """The least share that, given by every free bundle, meets the limits; units are taken as divisible here."""

        def at(share: float) -> dict[str, float]:
            return {b.name: b.size * (1 - share) if b.is_free else b.size for b in self.bundles}

        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._fits(at(middle)) else (middle, high)
        return high

    def _widest(self, fine: Sequence[Bundle], coarse: Mapping[str, int]) -> dict[str, int] | None:
        """The coarse counts with the widest MLPs that fit, or None."""

        def at(share: float) -> dict[str, int]:
            shared = {}
            for bundle in fine:
                fitting = [count for count in bundle.counts if count <= share * bundle.size + 1e-9]
                shared[bundle.name] = fitting[-1] if fitting else bundle.counts[0]
            return {**coarse, **shared}

        shares = sorted({0.0, *(count / bundle.size for bundle in fine for count in bundle.counts)})
        if not self._fits(at(shares[0])):
            return None
        low, high = 0, len(shares)  # at(shares[low]) fits; binary search for the last one that does
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(at(shares[middle])) else (low, middle)
        return self.filled(fine, at(shares[low]))

    def filled(self, bundles: Sequence[Bundle], counts: dict[str, int]) -> dict[str, int]:
        """The counts, raised as far as the limits allow, a step of the bundle that keeps the least share at a time."""
        counts, open_ones = dict(counts), [bundle for bundle in bundles if bundle.is_free]
        while open_ones:
            bundle = min(open_ones, key=lambda each: counts[each.name] / each.size)
            wider = next(steps_up(bundle, counts[bundle.name]), None)
            if wider is not None and self._fits({**counts, bundle.name: wider}):
                counts[bundle.name] = wider
            else:
                open_ones.remove(bundle)
        return counts


def _nearest_first(bundles: Sequence[Bundle], share: float) -> Iterator[dict[str, int]]:
    """Choices of the coarse counts, those nearest to the wanted share first."""
    wanted = [(1 - share) * bundle.size for bundle in bundles]

    def distance(counts: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        apart = [abs(count - want) / b.size for count, want, b in zip(counts, wanted, bundles, strict=True)]
        return round(max(apart, default=0.0), 9), counts  # halfway between two counts stays halfway

    for counts in sorted(product(*(bundle.counts for bundle in bundles)), key=distance):
        yield {bundle.name: count for bundle, count in zip(bundles, counts, strict=True)}


def _nearest(bundle: Bundle, share: float) -> int:
    """The allowed count nearest to a share; of two the larger."""
    return min(bundle.counts, key=lambda count: (abs(count / bundle.size - share), -count))


def _evenly(ways: Sequence[dict[str, int]], most: int) -> list[dict[str, int]]:
    """At most so many of them, the first and the last among them."""
    if len(ways) <= most:
        return list(ways)
    return [ways[round(place * (len(ways) - 1) / max(most - 1, 1))] for place in range(most)]
