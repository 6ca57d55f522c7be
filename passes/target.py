"""The target: from a ratio of the whole model's parameters to the widths of a uniform layout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from passes.errors import OptionError, UnreachableRatioError, UnsupportedModelError
from passes.graph import Kind, PruningGraph, Width

WIDE = 1024
"""MLPs at least this wide are rounded to ``COARSE`` channels, narrower ones to ``FINE``."""
COARSE = 64
FINE = 8

Counts = Mapping[str, int]
"""Kept units a dimension of each width, by the width's name."""


def default_multiple(size: int) -> int:
    """What MLP widths are rounded to unless the user says otherwise: 64 from 1024 channels up, else 8."""
    return COARSE if size >= WIDE else FINE


def reachable_counts(width: Width, multiple: int | None) -> list[int]:
    """The counts a result may have, ascending: of channels the multiples and the dense count, of others all."""
    if not width.kind.is_fine:
        return list(width.counts)
    step = multiple or default_multiple(width.size)
    return [count for count in width.counts if count % step == 0 or count == width.size]


def check_ratio(ratio: float) -> None:
    """Raise OptionError unless 0 < ratio < 1."""
    if not 0 < ratio < 1:
        raise OptionError(f"ratio must lie strictly between 0 and 1, got {ratio}: 0.3 removes 30 % of the parameters")


def width_parameters(graph: PruningGraph, name: str) -> int:
    """Parameters that go with one unit less in every dimension of a width, all other widths being dense."""
    return sum(graph.unit_parameters(dimension) for dimension in graph.of_width(name))


def uniform_counts(graph: PruningGraph, ratio: float, multiple: int | None = None) -> dict[str, int]:
    """The counts a width that remove ``ratio`` of the whole model's parameters.

    1. Heads and experts, the coarse units, give the share of their parameters that all prunable parameters together
       must give, as nearly as whole units (that can be built) allow; on a tie the smaller model.
    2. The channels make up the rest: the widest reachable MLPs with which the model has at most
       (1 − ratio) × dense parameters, all MLPs giving the same share. If none is narrow enough, the next nearest coarse
       counts are tried.

    Raises UnreachableRatioError, stating the largest reachable ratio, when even the smallest model is too large.
    """
    check_ratio(ratio)
    dense = graph.parameters()
    # Without rounding, the floating-point error of 1 - ratio can exclude a size that meets the ratio exactly.
    target = round((1 - ratio) * dense, 3)
    choices = {width.name: reachable_counts(width, multiple) for width in graph.widths}
    free = [width for width in graph.widths if len(choices[width.name]) > 1]
    if not free:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in graph.untouched.items())
        raise UnsupportedModelError(f"nothing of this {graph.family} model can be removed ({reasons})")
    share = common_share(graph, free, dense - target)
    coarse = [width for width in graph.widths if not width.kind.is_fine]
    fine = [width for width in graph.widths if width.kind.is_fine]
    for counts in _nearest_first(coarse, choices, share):
        widest = _widest(graph, fine, choices, counts, target)
        if widest is not None:
            return widest
    raise UnreachableRatioError(_out_of_reach(graph, ratio, {name: least[0] for name, least in choices.items()}))


def common_share(graph: PruningGraph, free: Sequence[Width], removed: float) -> float:
    """The share that every free width must give for ``removed`` parameters to go.

    Where both experts and the channels inside them go, their parameters N shrink by 1 − (1 − s)², everything else R by
    s: the smaller root of N·s² − (R + 2N)·s + removed = 0.
    """
    totals = {width.name: width_parameters(graph, width.name) * width.size for width in free}
    kinds = {width.kind for width in free}
    inside = sum(totals[width.name] for width in free if width.kind is Kind.EXPERT_CHANNELS)
    nested = inside if Kind.EXPERTS in kinds else 0
    rest = sum(totals.values()) - 2 * nested
    if not nested:
        return removed / rest
    middle = rest + 2 * nested
    return (middle - math.sqrt(max(0.0, middle**2 - 4 * nested * removed))) / (2 * nested)


def _nearest_first(widths: Sequence[Width], choices: Mapping[str, list[int]], share: float) -> Iterator[dict[str, int]]:
    """Choices of the coarse counts, those nearest to the wanted share first."""
    wanted = [(1 - share) * width.size for width in widths]

    def distance(counts: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        apart = [abs(count - want) / w.size for count, want, w in zip(counts, wanted, widths, strict=True)]
        return max(apart, default=0.0), counts

    for counts in sorted(product(*(choices[width.name] for width in widths)), key=distance):
        yield {width.name: count for width, count in zip(widths, counts, strict=True)}


def _widest(
    graph: PruningGraph,
    fine: Sequence[Width],
    choices: Mapping[str, list[int]],
    coarse: Counts,
    target: float,
) -> dict[str, int] | None:
    """The coarse counts with the widest MLPs that fit, or None: a common share first, then one MLP after another."""

    def at(share: float) -> dict[str, int]:
        shared = {}
        for width in fine:
            fitting = [count for count in choices[width.name] if count <= share * width.size + 1e-9]
            shared[width.name] = fitting[-1] if fitting else choices[width.name][0]
        return {**coarse, **shared}

    def fits(counts: Counts) -> bool:
        return graph.parameters(graph.uniform(counts)) <= target

    shares = sorted({0.0, *(count / width.size for width in fine for count in choices[width.name])})
    if not fits(at(shares[0])):
        return None
    low, high = 0, len(shares)  # at(shares[low]) fits; binary search for the last one that does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(at(shares[middle])) else (low, middle)
    counts = at(shares[low])
    for width in fine:
        for count in reversed([c for c in choices[width.name] if c > counts[width.name]]):
            if fits({**counts, width.name: count}):
                counts[width.name] = count
                break
    return counts


def _out_of_reach(graph: PruningGraph, ratio: float, least: Counts) -> str:
    dense, smallest = graph.parameters(), graph.parameters(graph.uniform(least))
    kept = " and ".join(f"{count} {name}" for name, count in least.items())
    reasons = "".join(f"; {name} cannot go: {reason}" for name, reason in graph.untouched.items())
    return (
        f"ratio {ratio} is out of reach: with {kept} a layer {smallest:,} of {dense:,} parameters remain. "
        f"The largest reachable ratio is {floor_ratio(1 - smallest / dense):.4f}{reasons}"
    )


def largest_ratio(graph: PruningGraph, multiple: int | None = None) -> float:
    """The largest ratio that can be asked for, rounded down to 4 digits."""
    least = {width.name: reachable_counts(width, multiple)[0] for width in graph.widths}
    return floor_ratio(1 - graph.parameters(graph.uniform(least)) / graph.parameters())


def floor_ratio(ratio: float) -> float:
    """The ratio rounded down to 4 digits, so that asking for it succeeds."""
    return int(ratio * 1e4) / 1e4


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the user asked for: the share of the whole model's parameters that goes, and the MLP rounding.

    ``multiple``: MLP widths are multiples of it (default: 64 from 1024 channels up, else 8).
    """

    ratio: float
    multiple: int | None = None

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if self.multiple is not None and self.multiple < 1:
            raise OptionError(f"multiple must be at least 1, got {self.multiple}")

    def counts(self, graph: PruningGraph) -> dict[str, int]:
        """The counts a width that meet the target. Raises UnreachableRatioError."""
        return uniform_counts(graph, self.ratio, self.multiple)
