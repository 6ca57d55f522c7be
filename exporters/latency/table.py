"""The latency table: what a workload takes for any choice of kept counts, from curves that were measured once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from exporters.latency.curve import Curve
from passes.errors import UnsupportedModelError
from passes.graph import Dimension, Kept, Kind, PruningGraph
from passes.options import Workload

ATTENTION = (Kind.KV_GROUPS, Kind.QUERY_HEADS)
BLOCKS = (Kind.ATTENTION_BLOCKS, Kind.MLP_BLOCKS)


@dataclass(frozen=True)
class LatencyTable:
    """Predicts the seconds of a workload (``passes.budget.latency.LatencyModel``).

    ``constant``: seconds of embedding, masks, head and of the call itself. ``curves``: seconds of one block by its kept
    count, a width of the graph; where a layer has several dimensions of one width (query heads of each KV head, the
    channels of each expert), each takes its part. A dimension that keeps 0 units takes nothing, so a layer or block
    that is gone is one whose dimensions keep 0.
    """

    workload: Workload
    graph: PruningGraph
    constant: float
    curves: Mapping[str, Curve]

    @property
    def dense_seconds(self) -> float:
        """Seconds of the dense model."""
        return self.seconds({})

    def seconds(self, kept: Kept) -> float:
        """Seconds of the workload.

        Dimensions of depth take out the terms of the layers or blocks that they do not keep; a number says that the
        first so many stay. Raises UnsupportedModelError for fewer hidden channels: they change every term.
        """
        self._check_hidden(kept)
        gone = self._gone(kept)
        present = (each for each in self._timed if (each.layer, _part(each)) not in gone)
        return self.constant + sum(self.dimension_seconds(each.name, each.count(kept)) for each in present)

    def dimension_seconds(self, name: str, count: float) -> float:
        """The term of one dimension that keeps ``count`` units, 0 for dimensions that do not enter.

        Those of depth do not: a layer that goes saves the terms of its other dimensions.
        """
        dimension = self.graph.by_name[name]
        curve = self.curves.get(dimension.width)
        return curve(count) / self._lanes[dimension.layer, dimension.width] if curve is not None else 0.0

    @cached_property
    def _timed(self) -> tuple[Dimension, ...]:
        return tuple(dimension for dimension in self.graph.dimensions if dimension.width in self.curves)

    @cached_property
    def _lanes(self) -> Mapping[tuple[int, str], int]:
        lanes: dict[tuple[int, str], int] = {}
        for each in self.graph.dimensions:
            lanes[each.layer, each.width] = lanes.get((each.layer, each.width), 0) + 1
        return lanes

    def _gone(self, kept: Kept) -> set[tuple[int, str]]:
        """Layer and part (attention or MLP) of every block that does not stay."""
        gone: set[tuple[int, str]] = set()
        for dimension in self.graph.dimensions:
            if dimension.kind.is_depth and dimension.name in kept:
                units = kept[dimension.name]
                stay = set(range(units) if isinstance(units, int) else units)
                parts = BLOCKS if dimension.kind is Kind.LAYERS else (dimension.kind,)
                gone |= {(layer, part) for layer in set(range(dimension.size)) - stay for part in parts}
        return gone

    def _check_hidden(self, kept: Kept) -> None:
        for dimension in self.graph.dimensions:
            count = dimension.count(kept)
            if dimension.kind is Kind.HIDDEN and count < dimension.size:
                raise UnsupportedModelError(
                    f"latency is not predicted for {count} of {dimension.size} hidden channels: they change every "
                    "term; make the table of the configuration with that hidden size"
                )


def _part(dimension: Dimension) -> str:
    return Kind.ATTENTION_BLOCKS if dimension.kind in ATTENTION else Kind.MLP_BLOCKS
