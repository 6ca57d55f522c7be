"""Renumber: the names that layers, parameters and dimensions have once whole layers are gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from passes.graph.dimensions import Dimension
from passes.graph.graph import PruningGraph
from passes.graph.kept import Kept
from passes.graph.kinds import Kind

T = TypeVar("T")


@dataclass(frozen=True)
class Renumbering:
    """``stack`` is the path of the list of layers, ``stay`` the dense numbers of those that are left, ascending."""

    stack: str
    stay: Sequence[int]

    @classmethod
    def of(cls, graph: PruningGraph, kept: Kept) -> Renumbering | None:
        """The renumbering that ``kept`` asks for; None if all layers stay."""
        layers = graph.by_name.get(str(Kind.LAYERS))
        removed = {unit for name, unit in graph.removed(kept) if name == str(Kind.LAYERS)}
        if layers is None or not removed:
            return None
        stack = layers.owned[0][0].partition(".0.")[0]
        return cls(stack, tuple(unit for unit in range(layers.size) if unit not in removed))

    def name(self, dense: str) -> str | None:
        """The name that a parameter or module has now; None if it is gone."""
        if not dense.startswith(f"{self.stack}."):
            return dense
        number, dot, rest = dense.removeprefix(f"{self.stack}.").partition(".")
        layer = int(number)
        return f"{self.stack}.{self.stay.index(layer)}{dot}{rest}" if layer in self.stay else None

    def mapping(self, dense: Mapping[str, T]) -> dict[str, T]:
        """The entries of parameters or modules that are left, by the names that they have now."""
        return {new: value for name, value in dense.items() if (new := self.name(name)) is not None}

    def dimension(self, dense: Dimension) -> Dimension:
        """A dimension that is left, with its names of now."""
        parts = [(self.name(part.parameter), self.name(part.source), part) for part in dense.slices]
        slices = tuple(
            replace(part, parameter=name, source=source or "") for name, source, part in parts if name is not None
        )
        if dense.kind is Kind.LAYERS:
            owned = tuple(tuple(self.name(name) or "" for name in dense.owned[unit]) for unit in self.stay)
            cached = tuple(dense.owned_cache[unit] for unit in self.stay)
            return replace(dense, size=len(self.stay), owned=owned, owned_cache=cached)
        if dense.layer not in self.stay or f"layers.{dense.layer}." not in dense.name:
            return replace(dense, slices=slices)
        layer = self.stay.index(dense.layer)
        name = dense.name.replace(f"layers.{dense.layer}.", f"layers.{layer}.", 1)
        buffers = [(self.name(part.parameter), part) for part in dense.buffers]
        kept = tuple(replace(part, parameter=now) for now, part in buffers if now is not None)
        return replace(dense, name=name, layer=layer, slices=slices, buffers=kept)

    def graph(self, dense: PruningGraph) -> PruningGraph:
        """The graph of the model without the layers."""
        layers = str(Kind.LAYERS)
        gone = sum(size for j, size in enumerate(dense.by_name[layers].owned_cache) if j not in self.stay)
        return replace(
            dense,
            shapes=self.mapping(dense.shapes),
            matmuls=tuple(self.mapping(dict.fromkeys(dense.matmuls))),
            dimensions=tuple(self.dimension(each) for each in self._left(dense)),
            fixed_cache_elements=dense.fixed_cache_elements - gone,
        )

    def kept(self, dense: PruningGraph, kept: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        """The kept units of the dimensions that are left."""
        left = {self.dimension(each).name: kept[each.name] for each in self._left(dense)}
        return {**left, str(Kind.LAYERS): tuple(range(len(self.stay)))}

    def _left(self, dense: PruningGraph) -> Iterator[Dimension]:
        for dimension in dense.dimensions:
            owner = dense.inside.get(dimension.name)
            if owner is None or owner[0] != str(Kind.LAYERS) or owner[1] in self.stay:
                yield dimension


def present(graph: PruningGraph, kept: Kept, modules: Sequence[str]) -> dict[str, str]:
    """Those of these modules of the dense model that are in the compact one, with the names that they have there."""
    gone = {parameter.rpartition(".")[0] for parameter in graph.gone(kept)}
    renumbering = Renumbering.of(graph, kept)
    now = {name: name if renumbering is None else renumbering.name(name) for name in modules if name not in gone}
    return {name: new for name, new in now.items() if new is not None}
