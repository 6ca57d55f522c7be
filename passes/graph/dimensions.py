"""What a graph is made of: dimensions, the slices of parameters that their units own, and the widths that they form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from passes.graph.kept import Kept, count_of
from passes.graph.kinds import Kind, Role

__all__ = ["Dimension", "Slice", "Stream", "Width"]


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

    @cached_property
    def width(self) -> int:
        """Indices that one unit owns."""
        return sum(block for _, block in self.segments)

    def indices(self, units: Sequence[int]) -> list[int]:
        """Indices along ``axis`` of the given units, ascending if the units are."""
        return [start + unit * block + i for start, block in self.segments for unit in units for i in range(block)]


@dataclass(frozen=True)
class Stream:
    """What must be known of the residual stream, beside its slices, to make it narrower (``passes.shrink.rescale``).

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
    ``cache_elements`` is what a unit adds to the key-value cache, in elements a token. ``layer`` is -1 where the units
    are not those of one layer: hidden channels, which all layers share and which have a ``stream``, and units of depth.

    Units of depth (``Kind.is_depth``) are layers or blocks: unit ``j`` owns the parameters ``owned[j]`` whole, and
    ``owned_cache[j]`` of the graph's fixed cache elements. Such a dimension has no slices and no ``Width``.
    ``buffers`` are slices of what is stored beside the parameters, which go with the units and cost nothing.
    """

    name: str
    kind: Kind
    layer: int
    size: int
    slices: tuple[Slice, ...]
    width: str
    cache_elements: int = 0
    owned: tuple[tuple[str, ...], ...] = ()
    owned_cache: tuple[int, ...] = ()
    stream: Stream | None = None
    buffers: tuple[Slice, ...] = ()

    @property
    def weights(self) -> tuple[Slice, ...]:
        """The slices of weights, whose entries are scored."""
        return tuple(s for s in self.slices if s.is_weight)

    def count(self, kept: Kept) -> int:
        """How many units ``kept`` leaves."""
        return count_of(kept.get(self.name, self.size))

    def of_role(self, role: Role) -> tuple[Slice, ...]:
        """The slices with one role."""
        return tuple(s for s in self.slices if s.role is role)


@dataclass(frozen=True)
class Width:
    """A number of units that all dimensions of this width share, in the dense model and in the uniform layout.

    ``counts``: the kept counts, ascending, that are allowed; the last is the dense one. ``stock``: those that the stock
    class holds. ``entries`` are the configuration's entries that say the width, with the factor that each has;
    ``epsilon`` is the one that must grow as the width shrinks (``passes.shrink.rescale``).
    """

    name: str
    kind: Kind
    size: int
    counts: tuple[int, ...]
    stock: tuple[int, ...] = ()
    entries: Mapping[str, int] = field(default_factory=dict)
    epsilon: str | None = None
