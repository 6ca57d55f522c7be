"""The pruning graph: which dimensions a model has, and what any choice of kept units costs, in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch


class Kind(StrEnum):
    """What the units of a dimension are."""

    KV_GROUPS = "kv_groups"
    MLP_CHANNELS = "mlp_channels"


@dataclass(frozen=True)
class Slice:
    """The rows (axis 0) or columns (axis 1) of one parameter that belong to a dimension.

    Unit ``j`` owns the ``block`` consecutive indices from ``j * block``.
    """

    parameter: str
    axis: int
    block: int = 1

    @property
    def module(self) -> str:
        """Name of the module that holds the parameter."""
        return self.parameter.rpartition(".")[0]

    @property
    def is_weight(self) -> bool:
        """Whether the parameter is a matrix (and not a bias)."""
        return self.parameter.endswith(".weight")

    def indices(self, units: Sequence[int]) -> list[int]:
        """Indices along ``axis`` of the given units, ascending if the units are."""
        return [unit * self.block + offset for unit in units for offset in range(self.block)]


@dataclass(frozen=True)
class Dimension:
    """One prunable axis of the model, such as the KV groups of layer 3."""

    name: str
    kind: Kind
    layer: int
    size: int
    slices: tuple[Slice, ...]

    @property
    def outputs(self) -> tuple[Slice, ...]:
        """The weight slices that *produce* the units; masking their outputs silences a unit."""
        return tuple(s for s in self.slices if s.is_weight and s.axis == 0)

    @property
    def weights(self) -> tuple[Slice, ...]:
        """The weight slices, producing and consuming."""
        return tuple(s for s in self.slices if s.is_weight)


@dataclass(frozen=True)
class Cost:
    """What a choice of kept units costs.

    ``macs`` are multiply-accumulates of the linear layers a token (the score products of attention, which grow with
    the context, are left out); ``kv_cache_bytes`` are bytes a token of context.
    """

    parameters: int
    macs: int
    weight_bytes: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class PruningGraph:
    """All dimensions of a model, with the shapes of its parameters (tied ones once)."""

    family: str
    layers: int
    head_dim: int
    query_heads_per_group: int
    dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]]
    matmuls: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    group_counts: tuple[int, ...]
    """KV-group counts that a stock class of the family loads, ascending."""

    @cached_property
    def by_name(self) -> Mapping[str, Dimension]:
        """The dimensions by name."""
        return {dimension.name: dimension for dimension in self.dimensions}

    @cached_property
    def _sliced(self) -> Mapping[str, tuple[tuple[str, int], ...]]:
        owners: dict[str, list[tuple[str, int]]] = {}
        for dimension in self.dimensions:
            for part in dimension.slices:
                owners.setdefault(part.parameter, []).append((dimension.name, dimension.size))
        return {parameter: tuple(found) for parameter, found in owners.items()}

    def of_kind(self, kind: Kind) -> tuple[Dimension, ...]:
        """The dimensions of one kind, in layer order."""
        return tuple(dimension for dimension in self.dimensions if dimension.kind is kind)

    def size(self, kind: Kind) -> int:
        """Units of this kind in one layer (the same in every layer of a dense model)."""
        return self.of_kind(kind)[0].size

    def numel(self, parameter: str, kept: Mapping[str, int]) -> int:
        """Elements left of one parameter; ``kept`` maps dimension names to kept counts (absent: all)."""
        elements = math.prod(self.shapes[parameter])
        for name, size in self._sliced.get(parameter, ()):
            elements = elements // size * kept.get(name, size)
        return elements

    def parameters(self, kept: Mapping[str, int] | None = None) -> int:
        """Parameters of the whole model; ``kept`` maps dimension names to kept counts (absent: all)."""
        return sum(self.numel(parameter, kept or {}) for parameter in self.shapes)

    def unit_parameters(self, dimension: Dimension) -> int:
        """Parameters that go with one unit of the dimension."""
        return sum(math.prod(self.shapes[part.parameter]) // dimension.size for part in dimension.slices)

    def cost(self, kept: Mapping[str, int] | None = None) -> Cost:
        """The exact cost of a choice of kept counts a dimension (absent: all)."""
        kept = kept or {}
        parameters = self.parameters(kept)
        groups = sum(kept.get(d.name, d.size) for d in self.of_kind(Kind.KV_GROUPS))
        return Cost(
            parameters=parameters,
            macs=sum(self.numel(name, kept) for name in self.matmuls),
            weight_bytes=parameters * self.dtype.itemsize,
            kv_cache_bytes=2 * groups * self.head_dim * self.dtype.itemsize,
        )

    def uniform(self, groups: int, channels: int) -> dict[str, int]:
        """Kept counts with the same widths in every layer."""
        widths = {Kind.KV_GROUPS: groups, Kind.MLP_CHANNELS: channels}
        return {dimension.name: widths[dimension.kind] for dimension in self.dimensions}
