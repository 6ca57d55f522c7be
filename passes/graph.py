"""The pruning graph: which dimensions a model has, and what any choice of kept units costs, in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

import torch

from passes.budget import Kept, count_of


class Kind(StrEnum):
    """What the units of a dimension are."""

    KV_GROUPS = "kv_groups"
    """A KV head with all the query heads that read it; a plain head where every query head has its own."""
    QUERY_HEADS = "query_heads"
    """The query heads that read one KV head, which itself stays."""
    MLP_CHANNELS = "mlp_channels"
    EXPERT_CHANNELS = "expert_channels"
    """The channels inside one expert."""
    EXPERTS = "experts"

    @property
    def is_fine(self) -> bool:
        """Whether units are single channels, thousands a layer, whose counts are rounded to a multiple."""
        return self in (Kind.MLP_CHANNELS, Kind.EXPERT_CHANNELS)

    @property
    def is_heads(self) -> bool:
        """Whether units are attention heads, or groups of them."""
        return self in (Kind.KV_GROUPS, Kind.QUERY_HEADS)


class Role(StrEnum):
    """What a parameter does for the units that it holds a slice of."""

    PRODUCE = "produce"
    """A weight whose outputs are the units'."""
    CONSUME = "consume"
    """A weight whose inputs are the units'."""
    OWN = "own"
    """A stack of weights, [unit, out, in], each of which belongs to one unit as a whole."""
    FOLLOW = "follow"
    """A bias, a norm, a bias table: cut with the units, scored by nothing."""
    ROUTE = "route"
    """The rows of a router that choose the units: cut with them, scored by nothing."""
    NORM = "norm"
    """The weight of an RMS norm over all units together; its producers are rescaled when units go (see shrink)."""


@dataclass(frozen=True)
class Slice:
    """The indices along one axis of a parameter that belong to a dimension.

    Unit ``j`` owns, for each segment ``(start, block)``, the ``block`` consecutive indices from ``start + j * block``:
    one segment for contiguous blocks (also when q, k and v are interleaved a head), three for fused [q; k; v], two for
    the halves of a fused gate_up. Indices that no unit owns always stay. ``at`` restricts the slice to one entry of the
    parameter's leading axis (one expert of a stack); ``axis`` still counts that leading axis.
    """

    parameter: str
    axis: int
    segments: tuple[tuple[int, int], ...] = ((0, 1),)
    role: Role = Role.FOLLOW
    at: int | None = None
    source: str = ""
    """For a NORM: the module whose outputs it normalises."""

    @property
    def module(self) -> str:
        """Name of the module that holds the parameter."""
        return self.parameter.rpartition(".")[0]

    @property
    def is_weight(self) -> bool:
        """Whether the parameter is a weight whose entries are scored."""
        return self.role in (Role.PRODUCE, Role.CONSUME, Role.OWN)

    @property
    def width(self) -> int:
        """Indices that one unit owns."""
        return sum(block for _, block in self.segments)

    def indices(self, units: Sequence[int]) -> list[int]:
        """Indices along ``axis`` of the given units, ascending if the units are."""
        return [start + unit * block + i for start, block in self.segments for unit in units for i in range(block)]


@dataclass(frozen=True)
class Dimension:
    """One prunable axis of the model, such as the KV groups of layer 3.

    ``width`` names the width it belongs to: in the uniform layout all dimensions of one width keep as many units.
    ``cache_elements`` is what a unit adds to the key-value cache, in elements a token.
    """

    name: str
    kind: Kind
    layer: int
    size: int
    slices: tuple[Slice, ...]
    width: str
    cache_elements: int = 0

    @property
    def weights(self) -> tuple[Slice, ...]:
        """The slices of weights, whose entries are scored."""
        return tuple(s for s in self.slices if s.is_weight)

    def of_role(self, role: Role) -> tuple[Slice, ...]:
        """The slices with one role."""
        return tuple(s for s in self.slices if s.role is role)


@dataclass(frozen=True)
class Width:
    """A number of units that all dimensions of this width share, in the dense model and in the uniform layout.

    ``counts``: the kept counts, ascending, that are allowed; the last is the dense one. ``stock``: those that the stock
    class holds. ``entries`` are the configuration's entries that say the width, with the factor that each has.
    """

    name: str
    kind: Kind
    size: int
    counts: tuple[int, ...]
    stock: tuple[int, ...] = ()
    entries: Mapping[str, int] = field(default_factory=dict)


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
        owners: dict[str, list[tuple[Dimension, Slice]]] = {}
        for dimension in self.dimensions:
            for part in dimension.slices:
                owners.setdefault(part.parameter, []).append((dimension, part))
        return {parameter: tuple(found) for parameter, found in owners.items()}

    def of_kind(self, kind: Kind) -> tuple[Dimension, ...]:
        """The dimensions of one kind, in layer order."""
        return tuple(dimension for dimension in self.dimensions if dimension.kind is kind)

    def width(self, name: str) -> Width:
        """The width of that name."""
        return next(width for width in self.widths if width.name == name)

    def of_width(self, width: str) -> tuple[Dimension, ...]:
        """The dimensions of one width, in layer order."""
        return tuple(dimension for dimension in self.dimensions if dimension.width == width)

    def shape(self, parameter: str, kept: Kept) -> tuple[int, ...]:
        """The shape left of one parameter; ``kept`` maps dimension names to kept counts (absent: all).

        The experts of one stack must keep as many channels each.
        """
        shape = list(self.shapes[parameter])
        in_stack: dict[int, int] = {}
        for dimension, part in self.slices_of.get(parameter, ()):
            removed = (dimension.size - count_of(kept.get(dimension.name, dimension.size))) * part.width
            if part.at is None:
                shape[part.axis] -= removed
            else:
                in_stack[part.axis] = removed
        for axis, removed in in_stack.items():
            shape[axis] -= removed
        return tuple(shape)

    def numel(self, parameter: str, kept: Kept) -> int:
        """Elements left of one parameter; ``kept`` maps dimension names to kept counts (absent: all)."""
        return math.prod(self.shape(parameter, kept))

    def parameters(self, kept: Kept | None = None) -> int:
        """Parameters of the whole model; ``kept`` maps dimension names to kept counts (absent: all)."""
        return sum(self.numel(parameter, kept or {}) for parameter in self.shapes)

    def unit_parameters(self, dimension: Dimension) -> int:
        """Parameters that go with one unit of the dimension, all others being there."""
        total = 0
        for part in dimension.slices:
            shape = self.shapes[part.parameter]
            entries = math.prod(shape) // shape[part.axis] * part.width
            total += entries if part.at is None else entries // shape[0]
        return total

    def cost(self, kept: Kept | None = None) -> Cost:
        """The exact cost of a choice of kept counts a dimension (absent: all)."""
        kept = kept or {}
        parameters = self.parameters(kept)
        cached = sum(d.cache_elements * count_of(kept.get(d.name, d.size)) for d in self.dimensions)
        return Cost(
            parameters=parameters,
            macs=sum(self._macs(name, kept) for name in self.matmuls),
            weight_bytes=parameters * self.dtype.itemsize,
            kv_cache_bytes=(cached + self.fixed_cache_elements) * self.dtype.itemsize,
        )

    def _macs(self, parameter: str, kept: Kept) -> int:
        shape = self.shape(parameter, kept)
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

    def uniform(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Kept counts a dimension from kept counts a width (absent: all)."""
        return {d.name: counts.get(d.width, d.size) for d in self.dimensions}
