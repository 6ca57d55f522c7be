"""The solver: from a target and scores to the masks that meet it, for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from passes.budget.allowed import allowed_counts, removable_units
from passes.budget.bundles import Bundle, by_dimension, layer_bundles, width_bundles
from passes.budget.comparison import comparable
from passes.budget.depth import DepthSearch, most_gone, stay_without
from passes.budget.latency import LatencyModel
from passes.budget.meter import Costs, Meter
from passes.budget.multiples import reachable_counts
from passes.budget.per_layer import LayerAllocation
from passes.budget.uniform import UniformAllocation
from passes.errors import OptionError, PlanError, UnreachableBudgetError, UnsupportedModelError
from passes.graph import Kept, Kind, Masks, PruningGraph, count_of
from passes.options import MEASURES, Balance, Comparison, Layout, Limit, Target

Scores = Mapping[str, torch.Tensor]
"""The importance of each unit, [units] a dimension."""


@dataclass(frozen=True)
class Solver:
    """A target for one model: the limits in absolute terms, and the bundles whose counts are to be chosen."""

    target: Target
    meter: Meter
    limits: tuple[Limit, ...]
    bundles: tuple[Bundle, ...]

    @classmethod
    def of(cls, target: Target, graph: PruningGraph, latency: LatencyModel | None = None) -> Solver:
        """What finds masks for a model. Raises OptionError, UnsupportedModelError or UnreachableBudgetError."""
        meter, asked = Meter(graph, latency), target.wanted
        limits = asked.limits(meter.dense(tuple(asked.asked)))
        if target.ratio is not None:
            limits = tuple(Limit(each.measure, each.bound, f"ratio {target.ratio}") for each in limits)
        counts = allowed_counts(target, graph)
        if target.layout is Layout.UNIFORM:
            bundles = width_bundles(graph, {w.name: counts[graph.of_width(w.name)[0].name] for w in graph.widths})
        else:
            bundles = layer_bundles(graph, counts)
        solver = cls(target, meter, limits, bundles)
        solver._check()
        return solver

    def _check(self) -> None:
        graph, meter = self.meter.graph, self.meter
        if not (any(bundle.is_free for bundle in self.bundles) or any(self.removable.values())):
            stays = [*self.target.protect, *self.target.freeze]
            if stays:
                raise OptionError(f"nothing is left to remove beside what stays whole ({', '.join(stays)}): name less")
            reasons = "; ".join(f"{name}: {reason}" for name, reason in graph.untouched.items())
            raise UnsupportedModelError(f"nothing of this {graph.family} model can be removed ({reasons})")
        if meter.fits({}, self.limits):
            raise OptionError(
                f"the dense model is within the budget already ({', '.join(map(str, self.limits))}): ask for less"
            )
        for limit in self.limits:
            least = meter.measure(limit.measure, self.smallest)
            if least > limit.bound:
                raise UnreachableBudgetError(self._out_of_reach(limit, least))

    @cached_property
    def dense(self) -> Costs:
        """What the dense model costs in the measures of the limits."""
        return self.meter.dense([limit.measure for limit in self.limits])

    @cached_property
    def removable(self) -> dict[str, tuple[int, ...]]:
        """The layers or blocks that may go, by the dimension's name."""
        return removable_units(self.target, self.meter.graph)

    @property
    def smallest(self) -> Kept:
        """The least that every dimension may keep."""
        graph = self.meter.graph
        widths = by_dimension(self.bundles, {bundle.name: bundle.counts[0] for bundle in self.bundles})
        most = {d.name: self.removable[d.name][-most_gone(d, self.removable[d.name]) :] for d in graph.depth}
        depth = {d.name: stay_without(d, most[d.name] if self.removable[d.name] else ()) for d in graph.depth}
        return graph.complete({**widths, **depth})

    def _out_of_reach(self, limit: Limit, least: float) -> str:
        graph, dense = self.meter.graph, self.dense[limit.measure]
        counts = {bundle.dimensions[0].width: bundle.counts[0] for bundle in self.bundles}
        kept = f"{' and '.join(f'{count} {name}' for name, count in counts.items())} a layer"
        if self.target.layout is Layout.PER_LAYER or graph.depth:
            kept = "the least that may stay"
        reasons = "".join(f"; {name} cannot go: {reason}" for name, reason in graph.untouched.items())
        whole = [w for w in graph.widths if w.name in graph.untouched and len(w.counts) == 1 < w.size]
        by_code = " and ".join(width.name for width in whole if width.kind is not Kind.HIDDEN)
        if by_code:
            reasons += f"; --custom-code (custom_code=True) lets {by_code} go, by code in the checkpoint"
        if limit.measure == "parameters":
            reach = f"The largest reachable ratio is {floor_ratio(1 - least / dense):.4f}"
        else:
            reach = f"Reachable are fractions from {-floor_ratio(-least / dense):.4f} to 1"
        shown = MEASURES[limit.measure].shown
        left = shown(least).partition(" ")[0]
        return f"{limit} is out of reach: with {kept} {left} of {shown(dense)} remain. {reach}{reasons}"

    @cached_property
    def uniform_counts(self) -> dict[str, int]:
        """The counts a width in the uniform layout of a model whose layers all stay; they need no scores."""
        counts = UniformAllocation(self.bundles, self.meter, self.limits).counts()
        assert counts is not None, "the smallest model is within the limits"
        return counts

    def balances(self, most: int) -> list[Mapping[str, int]]:
        """Kept units a width at each of at most so many ways to share what goes between heads and channels, the equal
        one first.

        None where there is nothing to choose: where layers differ or whole ones may go, where units of one sort go
        alone, and where the target says ``equal``.
        """
        if self.target.layout is not Layout.UNIFORM or self.meter.graph.depth or self.target.balance is Balance.EQUAL:
            return []
        ways = UniformAllocation(self.bundles, self.meter, self.limits).balances(most)
        return list(ways) if len(ways) > 1 else []

    def kept(self, scores: Scores, share: float = 1.0, among: Masks | None = None) -> Kept:
        """How many units each dimension keeps, or which ones where they are layers or blocks, at which the share of
        what is to go is gone; at 1, those of the result.

        ``among`` restricts the choice to units that are still on. On the way (``share`` below 1) nothing is given
        back or exchanged in the layout per layer.
        """
        ranked = comparable(self.meter.graph, scores, Comparison(self.target.comparison))
        if among is not None:
            ranked = {name: score.masked_fill(~among[name], 0.0) for name, score in ranked.items()}
        search = DepthSearch(
            self.meter.graph, ranked, self.removable, lambda stay: self._widths(stay, ranked, share, among)
        )
        return search.kept(among)

    def _widths(self, stay: Kept, ranked: Scores, share: float, among: Masks | None) -> tuple[Kept, float] | None:
        """The widths of what stays, and the share of its importance that they keep; None where they cannot be met."""
        graph = self.meter.graph
        meter, limits = replace(self.meter, base=graph.complete(stay)), self._limits_at(share)
        bundles = present(self.bundles, meter.base)
        if among is not None:
            bundles = [_still_on(bundle, among) for bundle in bundles]
        if self.target.layout is Layout.UNIFORM:
            counts = UniformAllocation(bundles, meter, limits).counts()
        else:
            counts = LayerAllocation(bundles, meter, limits, ranked, polish=share >= 1).counts()
        if counts is None:
            return None
        kept = by_dimension(bundles, counts)
        return {**meter.base, **kept}, share_kept(ranked, kept)

    def _limits_at(self, share: float) -> tuple[Limit, ...]:
        over = {limit.measure: max(0.0, self.dense[limit.measure] - limit.bound) for limit in self.limits}
        return tuple(
            Limit(limit.measure, limit.bound + (1 - share) * over[limit.measure], limit.asked) for limit in self.limits
        )

    def masks(self, scores: Scores) -> dict[str, torch.Tensor]:
        """The masks that meet the target, of the best units."""
        return best_units(self.meter.graph, scores, self.kept(scores))

    def check(self, kept: Kept) -> None:
        """Raise PlanError unless these kept units are within all limits and of allowed counts."""
        for limit in self.limits:
            actual = self.meter.measure(limit.measure, kept)
            if actual > limit.bound * (1 + 1e-9):
                shown = MEASURES[limit.measure].shown
                raise PlanError(
                    f"the masks do not meet the target {limit}: {shown(actual)} are left, {shown(limit.bound)} allowed"
                )
        for bundle in present(self.bundles, self.meter.graph.complete(kept)):
            for dimension in bundle.dimensions:
                count = count_of(kept.get(dimension.name, dimension.size))
                if count not in bundle.counts:
                    raise PlanError(f"the masks keep {count} of {dimension.name}, which is no allowed count")


def best_units(
    graph: PruningGraph, scores: Scores, kept: Kept, *, among: Masks | None = None
) -> dict[str, torch.Tensor]:
    """Masks that keep the highest-scored units, as many a dimension as ``kept`` says; ties keep the lower index.

    Where ``kept`` names units, those are kept. ``among`` restricts the choice to units that are still on, so that none
    comes back.
    """
    masks = {}
    for dimension in graph.dimensions:
        ranked, units = scores[dimension.name], kept[dimension.name]
        if among is not None:
            ranked = ranked.masked_fill(~among[dimension.name], -torch.inf)
        if isinstance(units, int):
            units = torch.sort(ranked, descending=True, stable=True).indices[:units].tolist()
        masks[dimension.name] = torch.zeros(dimension.size, dtype=torch.bool)
        masks[dimension.name][list(units)] = True
    return masks


def present(bundles: Sequence[Bundle], kept: Kept) -> list[Bundle]:
    """The bundles without the dimensions that keep nothing, because the layer or block that they lie in is gone."""
    left = []
    for bundle in bundles:
        there = tuple(d for d in bundle.dimensions if d.count(kept))
        if there:
            left.append(replace(bundle, dimensions=there))
    return left


def share_kept(scores: Scores, counts: Mapping[str, int]) -> float:
    """The share of the importance of these dimensions that their best units hold; 1 where there is none."""
    total = sum(float(scores[name].sum()) for name in counts)
    best = sum(float(scores[name].sort(descending=True).values[:count].sum()) for name, count in counts.items())
    return best / total if total > 0 else 1.0


def _still_on(bundle: Bundle, among: Masks) -> Bundle:
    """The bundle with no more than what is still on; that very number is allowed, as it may be on the way down."""
    most = min(int(among[dimension.name].sum()) for dimension in bundle.dimensions)
    counts = tuple(count for count in bundle.counts if count < most)
    return Bundle(bundle.name, bundle.kind, bundle.dimensions, (*counts, most))


def largest_ratio(graph: PruningGraph, multiple: int | None = None) -> float:
    """The largest ratio that can be asked for in the uniform layout, rounded down to 4 digits."""
    least = {width.name: reachable_counts(width, multiple)[0] for width in graph.widths}
    return floor_ratio(1 - graph.parameters(graph.uniform(least)) / graph.parameters())


def floor_ratio(ratio: float) -> float:
    """The ratio rounded down to 4 digits, so that asking for it succeeds."""
    return (int(ratio * 1e4) if ratio >= 0 else -int(-ratio * 1e4 + 1)) / 1e4
