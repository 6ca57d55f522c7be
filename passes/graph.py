"""The pruning graph: which dimensions a model has, and what any choice of kept units costs, in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import torch


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
    HIDDEN = "hidden"
    """The channels of the residual stream, which all layers share."""

    @property
    def is_fine(self) -> bool:
        """Whether units are single channels, thousands a layer, whose counts are rounded to a multiple."""
        return self in (Kind.MLP_CHANNELS, Kind.EXPERT_CHANNELS, Kind.HIDDEN)


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
    """The weight of an RMS norm over all units together, with what it takes to stay exact (see ``passes.rescale``)."""


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
    """For a NORM: the one module whose outputs it normalises; empty over the residual stream, which many write."""
    offset: float = 0.0
    """For a NORM: what it adds to its weight before it multiplies by it (1 in the Gemmas)."""

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
class Stream:
    """What must be known of the residual stream, beside its slices, to make it narrower (see ``passes.rescale``).

    ``embedding``: the parameter of the token embedding. ``final_norm``: that of the norm whose output the head reads.
    ``companions``: norms of other values that have the same entry of the configuration as their epsilon, each with the
    module whose outputs it normalises.
    """

    embedding: str
    final_norm: str
    companions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Dimension:
    """One prunable axis of the model, such as the KV groups of layer 3.

    ``width`` names the width it belongs to: in the uniform layout all dimensions of one width keep as many units.
    ``cache_elements`` is what a unit adds to the key-value cache, in elements a token. ``layer`` is -1 where all layers
    share the units, which then have a ``stream``.
    """

    name: str
    kind: Kind
    layer: int
    size: int
    slices: tuple[Slice, ...]
    width: str
    cache_elements: int = 0
    stream: Stream | None = None

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
    class holds. ``entries`` are the configuration's entries that say the width, with the factor that each has;
    ``epsilon`` is the one that must grow as the width shrinks (see ``passes.rescale``).
    """

    name: str
    kind: Kind
    size: int
    counts: tuple[int, ...]
    stock: tuple[int, ...] = ()
    entries: Mapping[str, int] = field(default_factory=dict)
    epsilon: str | None = None


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

    def shape(self, parameter: str, kept: Mapping[str, int]) -> tuple[int, ...]:
        """The shape left of one parameter; ``kept`` maps dimension names to kept counts (absent: all).

        The experts of one stack must keep as many channels each.
        """
        shape = list(self.shapes[parameter])
        in_stack: dict[int, int] = {}
        for dimension, part in self.slices_of.get(parameter, ()):
            removed = (dimension.size - kept.get(dimension.name, dimension.size)) * part.width
            if part.at is None:
                shape[part.axis] -= removed
            else:
                in_stack[part.axis] = removed
        for axis, removed in in_stack.items():
            shape[axis] -= removed
        return tuple(shape)

    def numel(self, parameter: str, kept: Mapping[str, int]) -> int:
        """Elements left of one parameter; ``kept`` maps dimension names to kept counts (absent: all)."""
        return math.prod(self.shape(parameter, kept))

    def parameters(self, kept: Mapping[str, int] | None = None) -> int:
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

    def cost(self, kept: Mapping[str, int] | None = None) -> Cost:
        """The exact cost of a choice of kept counts a dimension (absent: all)."""
        kept = kept or {}
        parameters = self.parameters(kept)
        cached = sum(d.cache_elements * kept.get(d.name, d.size) for d in self.dimensions)
        return Cost(
            parameters=parameters,
            macs=sum(self._macs(name, kept) for name in self.matmuls),
            weight_bytes=parameters * self.dtype.itemsize,
            kv_cache_bytes=(cached + self.fixed_cache_elements) * self.dtype.itemsize,
        )

    def _macs(self, parameter: str, kept: Mapping[str, int]) -> int:
        shape = self.shape(parameter, kept)
        if len(shape) == 3:  # a stack of experts, of which a token visits a few
            return min(self.experts_per_token, shape[0]) * math.prod(shape[1:])
        return math.prod(shape)

    def uniform(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Kept counts a dimension from kept counts a width (absent: all)."""
        return {d.name: counts.get(d.width, d.size) for d in self.dimensions}
