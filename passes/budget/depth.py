"""Which layers or blocks go: found by trying how many, and asking each time what the other widths would keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from passes.errors import UnreachableBudgetError
from passes.graph import Dimension, Kept, Masks, PruningGraph

PATIENCE = 2
"""More units of a dimension that are tried to go without gain before the search stops there."""

Gone = dict[str, int]
"""How many units of each dimension of depth go."""


def stay_without(dimension: Dimension, removed: Sequence[int]) -> tuple[int, ...]:
    """The units that stay."""
    return tuple(unit for unit in range(dimension.size) if unit not in set(removed))


def most_gone(dimension: Dimension, removable: Sequence[int]) -> int:
    """How many units may go: one at least stays."""
    return min(len(removable), dimension.size - 1)


@dataclass
class DepthSearch:
    """The choice of layers or blocks that keeps the most importance.

    Of each dimension of depth the least important units go first. A choice is worth the share of the importance of
    layers and blocks that stays, times the share that the widths keep of what is left in them (``widths``, which gives
    the kept counts too, or None where the limits cannot be met). The search climbs: one more unit of one dimension
    after another, while that helps, with a little patience; as many as it takes while the limits cannot be met at all.
    """

    graph: PruningGraph
    scores: Mapping[str, torch.Tensor]
    removable: Mapping[str, Sequence[int]]
    widths: Callable[[Kept], tuple[Kept, float] | None]

    def kept(self, among: Masks | None = None) -> Kept:
        """The best choice. ``among``: units that are off already stay off.

        Where the limits ask for units of several dimensions at once, the least important ones of all go until they can
        be met, and the search goes on from there. Raises UnreachableBudgetError if that is never so.
        """
        gone = {d.name: 0 if among is None else int((~among[d.name]).sum()) for d in self.graph.depth}
        kept = self._climb(gone)
        while kept is None:
            gone = self._one_more(gone)
            kept = self._climb(gone)
        return kept

    def _climb(self, gone: Gone) -> Kept | None:
        """The best choice that single steps lead to; None if the limits cannot be met on the way."""
        best, kept = self._value(gone)
        improved = bool(gone)
        while improved:
            improved = False
            for name in gone:
                for more in range(1, self._most(name) - gone[name] + 1):
                    value, found = self._value({**gone, name: gone[name] + more})
                    if value > best or (kept is None and found is not None):
                        best, kept, gone, improved = value, found, {**gone, name: gone[name] + more}, True
                        break
                    if kept is not None and more >= PATIENCE:
                        break
        return kept

    def _one_more(self, gone: Gone) -> Gone:
        """The same with the unit besides that has the least share of its dimension's importance."""
        shares = {}
        for name in gone:
            if gone[name] < self._most(name):
                scores = self.scores[name]
                unit = self._first_to_go(self.graph.by_name[name], gone[name] + 1)[-1]
                shares[name] = float(scores[unit]) / max(float(scores.sum()), float(torch.finfo(scores.dtype).tiny))
        if not shares:
            raise UnreachableBudgetError(
                "the limits cannot be met with the least important layers or blocks gone: protect fewer, ask for less"
            )
        name = min(shares, key=shares.__getitem__)
        return {**gone, name: gone[name] + 1}

    def _most(self, name: str) -> int:
        return most_gone(self.graph.by_name[name], self.removable[name])

    def _value(self, gone: Gone) -> tuple[float, Kept | None]:
        stay = {d.name: stay_without(d, self._first_to_go(d, gone[d.name])) for d in self.graph.depth}
        found = self.widths(stay)
        if found is None:
            return 0.0, None
        kept, value = found
        for name, units in stay.items():
            total = float(self.scores[name].sum())
            value *= float(self.scores[name][list(units)].sum()) / total if total > 0 else 1.0
        return value, kept

    def _first_to_go(self, dimension: Dimension, count: int) -> list[int]:
        ranked = sorted(self.removable[dimension.name], key=lambda unit: float(self.scores[dimension.name][unit]))
        return ranked[:count]
