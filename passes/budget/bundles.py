"""Bundles: dimensions that must keep equally many units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from passes.graph import LANE, Dimension, Kind, PruningGraph


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
