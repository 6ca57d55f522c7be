"""Bundles: dimensions that must keep equally many units, and the counts that they may keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from passes.graph import LANE, Dimension, Kind, PruningGraph, Width

WIDE = 1024
"""MLPs at least this wide are rounded to ``COARSE`` channels, narrower ones to ``FINE``."""
COARSE = 64
FINE = 8


@dataclass(frozen=True)
class Bundle:
    """Dimensions of one size that keep as many units each: those of a width, or in a layout per layer, of one layer.

    ``counts`` are the counts that a result may keep, ascending; the last is the dense one.
    """

    name: str
    kind: Kind
    dimensions: tuple[Dimension, ...]
    counts: tuple[int, ...]

    @property
    def size(self) -> int:
        """Units of each dimension when dense."""
        return self.dimensions[0].size

    @property
    def is_free(self) -> bool:
        """Whether there is a choice."""
        return len(self.counts) > 1


def default_multiple(size: int) -> int:
    """What MLP widths are rounded to unless the user says otherwise: 64 from 1024 channels up, else 8."""
    return COARSE if size >= WIDE else FINE


def multiple_of(graph: PruningGraph) -> int | None:
    """What a graph's MLP widths are rounded to unless the user says otherwise; None if none of them can go."""
    fine = [width.size for width in graph.widths if width.kind.is_fine and width.kind is not Kind.HIDDEN]
    return default_multiple(max(fine)) if fine else None


def reachable_counts(width: Width, multiple: int | None) -> list[int]:
    """The counts a result may have, ascending: of channels the multiples and the dense count, of others all."""
    if not width.kind.is_fine:
        return list(width.counts)
    step = multiple or default_multiple(width.size)
    return [count for count in width.counts if count % step == 0 or count == width.size]


def width_bundles(graph: PruningGraph, counts: Mapping[str, Sequence[int]]) -> tuple[Bundle, ...]:
    """One bundle a width, for the uniform layout; ``counts`` are those allowed, by the width's name."""
    return tuple(
        Bundle(width.name, width.kind, graph.of_width(width.name), tuple(counts[width.name])) for width in graph.widths
    )


def layer_bundles(graph: PruningGraph, counts: Mapping[str, Sequence[int]]) -> tuple[Bundle, ...]:
    """One bundle a width and layer, for the layout per layer; ``counts`` as for ``width_bundles``, by dimension."""
    lanes: dict[str, list[Dimension]] = {}
    for width in graph.widths:
        for dimension in graph.of_width(width.name):
            lanes.setdefault(LANE.sub("", dimension.name), []).append(dimension)
    return tuple(Bundle(name, same[0].kind, tuple(same), tuple(counts[same[0].name])) for name, same in lanes.items())


def by_dimension(bundles: Iterable[Bundle], counts: Mapping[str, int]) -> dict[str, int]:
    """Kept counts a dimension from kept counts a bundle."""
    return {dimension.name: counts[bundle.name] for bundle in bundles for dimension in bundle.dimensions}


def steps_up(bundle: Bundle, count: int) -> Iterator[int]:
    """The allowed counts above one, ascending."""
    return (other for other in bundle.counts if other > count)
