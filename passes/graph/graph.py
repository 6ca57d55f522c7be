"""The pruning graph: which dimensions a model has, and what any choice of kept units costs, in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from passes.errors import OptionError
from passes.graph.dimensions import Dimension, Slice, Width
from passes.graph.kept import Kept
from passes.graph.kinds import Kind, Role

__all__ = ["Cost", "PruningGraph"]


@dataclass(frozen=True)
class Cost:
    """What a choice of kept units costs.

    ``macs`` are multiply-accumulates of the linear layers a token, in an encoder-decoder of one source and one target
    token (the score products of attention, which grow with the context, are left out); ``kv_cache_bytes`` are bytes a
    token of context.
    """

    parameters: int
    macs: int
    weight_bytes: int
    kv_cache_bytes: int


def _owners(parts: Iterable[tuple[Dimension, Slice]]) -> dict[str, tuple[tuple[Dimension, Slice], ...]]:
    """Slices with their dimensions, by the tensor that they are of."""
    owners: dict[str, list[tuple[Dimension, Slice]]] = {}
    for dimension, part in parts:
        owners.setdefault(part.parameter, []).append((dimension, part))
    return {parameter: tuple(found) for parameter, found in owners.items()}


def _lost(dimensions: Iterable[Dimension], kept: Kept) -> dict[str, int]:
    """How many units each dimension loses."""
    return {dimension.name: dimension.size - dimension.count(kept) for dimension in dimensions}


@dataclass(frozen=True)
class PruningGraph:
    """All dimensions of a model, with the shapes of its parameters (tied ones once).

    ``untouched`` says, a part of the model, why nothing is removed there. ``fixed_cache_elements`` are the elements a
    token of those key-value caches that no dimension prunes.
    """

    family: str
    dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]]
    matmuls: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    widths: tuple[Width, ...]
    untouched: Mapping[str, str]
    fixed_cache_elements: int = 0
    experts_per_token: int = 1
    fixed_entries: Mapping[str, int] = field(default_factory=dict)
    """Entries that a smaller configuration must state because their default would follow the number of heads."""

    @cached_property
    def by_name(self) -> Mapping[str, Dimension]:
        """The dimensions by name."""
        return {dimension.name: dimension for dimension in self.dimensions}

    @cached_property
    def slices_of(self) -> Mapping[str, tuple[tuple[Dimension, Slice], ...]]:
        """The slices of each parameter that has any, with their dimensions."""
        return _owners((dimension, part) for dimension in self.dimensions for part in dimension.slices)

    @cached_property
    def cuts_of(self) -> Mapping[str, tuple[tuple[Dimension, Slice], ...]]:
        """The same of each stored tensor, buffers among them."""
        buffers = _owners((dimension, part) for dimension in self.dimensions for part in dimension.buffers)
        return {**self.slices_of, **buffers}

    def of_kind(self, kind: Kind) -> tuple[Dimension, ...]:
        """The dimensions of one kind, in layer order."""
        return tuple(dimension for dimension in self.dimensions if dimension.kind is kind)

    def width(self, name: str) -> Width:
        """The width of that name."""
        return next(width for width in self.widths if width.name == name)

    def of_width(self, width: str) -> tuple[Dimension, ...]:
        """The dimensions of one width, in layer order."""
        return tuple(dimension for dimension in self.dimensions if dimension.width == width)

    @cached_property
    def depth(self) -> tuple[Dimension, ...]:
        """The dimensions whose units are layers or blocks."""
        return tuple(dimension for dimension in self.dimensions if dimension.kind.is_depth)

    @cached_property
    def owner_of(self) -> Mapping[str, tuple[str, int]]:
        """The layer or block that owns a parameter whole: the dimension's name and the unit, by the parameter's."""
        return {name: (d.name, unit) for d in self.depth for unit, owned in enumerate(d.owned) for name in owned}

    @cached_property
    def inside(self) -> Mapping[str, tuple[str, int]]:
        """The layer or block that a dimension lies in, as a dimension's name and unit, by the inner dimension's name.

        A dimension lies in the unit that owns all parameters it has slices of.
        """
        found = {}
        for dimension in self.dimensions:
            owners = {self.owner_of.get(part.parameter) for part in dimension.slices}
            owner = owners.pop() if len(owners) == 1 else None
            if owner is not None:
                found[dimension.name] = owner
        return found

    def removed(self, kept: Kept) -> frozenset[tuple[str, int]]:
        """The layers and blocks that go, as pairs of a dimension's name and a unit.

        Raises OptionError where ``kept`` says how many of them stay, but not which.
        """
        return frozenset(
            (dimension.name, unit)
            for dimension in self.depth
            for unit in set(range(dimension.size)).difference(self._units(dimension, kept))
        )

    def _units(self, dimension: Dimension, kept: Kept) -> Sequence[int]:
        units = kept.get(dimension.name, dimension.size)
        if isinstance(units, int):
            if units != dimension.size:
                raise OptionError(
                    f"kept says that {units} of {dimension.size} {dimension.name} stay, but the cost depends on which: "
                    "give their indices"
                )
            return range(dimension.size)
        return units

    def complete(self, kept: Kept) -> dict[str, int | Sequence[int]]:
        """``kept`` with no units left in the dimensions that lie in a removed layer or block."""
        removed = self.removed(kept)
        return {**kept, **({name: () for name, owner in self.inside.items() if owner in removed} if removed else {})}

    def gone(self, kept: Kept) -> frozenset[str]:
        """The parameters that go whole, with the layers and blocks that own them."""
        removed = self.removed(kept)
        return frozenset(
            name for d in self.depth for unit in range(d.size) if (d.name, unit) in removed for name in d.owned[unit]
        )

    def shape(self, parameter: str, kept: Kept) -> tuple[int, ...]:
        """The shape left of one parameter; ``kept`` maps dimension names to kept units or counts (absent: all).

        The experts of one stack must keep as many channels each. A parameter that a removed layer or block owns has 0
        elements: its last axis has length 0.
        """
        owners = (dimension for dimension, _ in self.slices_of.get(parameter, ()))
        return self._shape(parameter, _lost(owners, self.complete(kept)), self.gone(kept))

    def shapes_left(self, kept: Kept) -> dict[str, tuple[int, ...]]:
        """The shapes left of all parameters; see ``shape``."""
        lost, gone = _lost(self.dimensions, self.complete(kept)), self.gone(kept)
        return {parameter: self._shape(parameter, lost, gone) for parameter in self.shapes}

    def _shape(self, parameter: str, lost: Mapping[str, int], gone: frozenset[str]) -> tuple[int, ...]:
        shape = list(self.shapes[parameter])
        if parameter in gone:
            return (*shape[:-1], 0)
        in_stack: dict[int, int] = {}
        for dimension, part in self.slices_of.get(parameter, ()):
            removed = lost[dimension.name] * part.width
            if part.at is None:
                shape[part.axis] -= removed
            else:
                in_stack[part.axis] = removed
        for axis, removed in in_stack.items():
            shape[axis] -= removed
        return tuple(shape)

    def numel(self, parameter: str, kept: Kept) -> int:
        """Elements left of one parameter; ``kept`` maps dimension names to kept units or counts (absent: all)."""
        return math.prod(self.shape(parameter, kept))

    def parameters(self, kept: Kept | None = None) -> int:
        """Parameters of the whole model; ``kept`` maps dimension names to kept units or counts (absent: all)."""
        return sum(map(math.prod, self.shapes_left(kept or {}).values()))

    def unit_parameters(self, dimension: Dimension, unit: int = 0) -> int:
        """Parameters that go with one unit of the dimension, all others being there; only layers and blocks differ."""
        total = sum(math.prod(self.shapes[name]) for name in (dimension.owned[unit] if dimension.owned else ()))
        for part in dimension.slices:
            shape = self.shapes[part.parameter]
            entries = math.prod(shape) // shape[part.axis] * part.width
            total += entries if part.at is None else entries // shape[0]
        return total

    @cached_property
    def whole_of(self) -> Mapping[str, tuple[str, int]]:
        """The layer or block that each weight adds its scores to: ``owner_of`` of weights, without routers."""
        routers = {part.parameter for each in self.dimensions for part in each.of_role(Role.ROUTE)}
        weights = {part.parameter for each in self.dimensions for part in each.weights} | {*self.matmuls} - routers
        return {name: owner for name, owner in self.owner_of.items() if name in weights}

    def scored(self, dimension: Dimension) -> tuple[str, ...]:
        """The weights whose entries make up the scores of the dimension's units."""
        if dimension.kind.is_depth:
            return tuple(name for name, (owner, _) in self.whole_of.items() if owner == dimension.name)
        return tuple(dict.fromkeys(part.parameter for part in dimension.weights))

    def cost(self, kept: Kept | None = None) -> Cost:
        """The exact cost of a choice of kept units or counts a dimension (absent: all)."""
        kept = self.complete(kept or {})
        left, removed = self.shapes_left(kept), self.removed(kept)
        parameters = sum(map(math.prod, left.values()))
        cached = self.fixed_cache_elements + sum(d.cache_elements * d.count(kept) for d in self.dimensions)
        cached -= sum(size for d in self.depth for j, size in enumerate(d.owned_cache) if (d.name, j) in removed)
        return Cost(
            parameters=parameters,
            macs=sum(self._macs(left[name]) for name in self.matmuls),
            weight_bytes=parameters * self.dtype.itemsize,
            kv_cache_bytes=cached * self.dtype.itemsize,
        )

    def _macs(self, shape: tuple[int, ...]) -> int:
        if len(shape) == 3:  # a stack of experts, of which a token visits a few
            return min(self.experts_per_token, shape[0]) * math.prod(shape[1:])
        return math.prod(shape)

    def part(self, dimensions: Iterable[Dimension]) -> PruningGraph:
        """The graph of the parameters alone that these dimensions have slices of.

        It has no fixed costs: it is for differences between choices of these dimensions' units.
        """
        parameters = {part.parameter for dimension in dimensions for part in dimension.slices}
        owners = {d.name: d for name in sorted(parameters) for d, _ in self.slices_of[name]}
        return replace(
            self,
            shapes={name: shape for name, shape in self.shapes.items() if name in parameters},
            matmuls=tuple(name for name in self.matmuls if name in parameters),
            dimensions=tuple(owners.values()),
        )

    def uniform(self, counts: Kept) -> dict[str, int | Sequence[int]]:
        """Kept units or counts a dimension from those a width (absent: all); of layers and blocks which ones stay."""
        return self.complete({d.name: counts.get(d.width, d.size) for d in self.dimensions})
