"""What tracing cannot see inside an attention block: where queries, keys and values lie. One description a layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from torch import nn
from transformers.pytorch_utils import Conv1D

from passes.errors import UnsupportedModelError
from passes.graph import Kind, Role, Slice, ends_in


class Packing(StrEnum):
    """How queries, keys and values share weights."""

    SEPARATE = "separate"
    """A layer each."""
    PARTS = "parts"
    """One layer: all queries, then all keys, then all values."""
    GROUPS = "groups"
    """One layer: for each KV head its queries, its key, its value (interleaved a head where q = k = v)."""


@dataclass(frozen=True)
class AttentionLayout:
    """One kind of attention block. Names are relative to the block; a leading dot means relative to its parent.

    ``block``: the end of the block's path, where ``*`` is any number. ``projections``: query, key and value, or the
    one layer that packs them. ``head_dim``: the block's attribute with the size of a head. ``shared``: norms over a
    single head's values, of the queries and of the keys, which all heads share, so they stay whole. ``query_norms``
    and ``key_norms``: norms with weights a head, [heads, head_dim] or [heads * head_dim] applied a head.
    ``whole_query_norm`` and ``whole_key_norm``: RMS norms over all heads together. ``gates``: projections with an
    output for each of all heads' values, by which these are multiplied; ``gated_query``: each head's queries are
    followed by such values in the query projection. ``whole``: norms behind the output projection, which stay whole.
    ``a_head``: parameters with an entry a head (attention sinks). ``bias_table``: an embedding [buckets, heads] of the
    first block, whose bias all blocks of the stack share, so that their heads go together. ``head_inputs``: arguments
    of the block with an entry a head (ALiBi). ``passes_on``: the argument in which all blocks get what the first one
    made, an entry a head, all of them equal. ``attributes``: the block's attributes that must change with the heads,
    with ``heads``, ``groups`` or ``width`` (heads * head_dim); ``config.NAME`` is one that it reads of its
    configuration while it runs. ``width``: name of the width; ``{stack}`` is encoder or decoder. ``cross``: keys and
    values come from the encoder. ``expands``: the block's attribute that says whether keys and values are repeated for
    each query head before they are cached.
    """

    block: str = "self_attn"
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    output: str = "o_proj"
    packing: Packing = Packing.SEPARATE
    head_dim: str = "head_dim"
    shared: tuple[str, ...] = ()
    query_norms: tuple[str, ...] = ()
    key_norms: tuple[str, ...] = ()
    whole_query_norm: str | None = None
    whole_key_norm: str | None = None
    whole: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    gated_query: bool = False
    a_head: tuple[str, ...] = ()
    bias_table: str | None = None
    head_inputs: tuple[str, ...] = ()
    passes_on: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    width: str = "{kind}"
    cross: bool = False
    expands: str | None = None

    def matches(self, path: str) -> bool:
        """Whether a module path names such a block."""
        return ends_in(path, self.block)

    def read(self, model: nn.Module, path: str) -> AttentionBlock:
        """The block at a path. Raises UnsupportedModelError when a weight is missing or has another size."""
        return AttentionBlock.read(self, model, path)


@dataclass(frozen=True)
class AttentionBlock:
    """One attention block of a model, measured: its paths, heads and parameters."""

    layout: AttentionLayout
    path: str
    head_dim: int
    heads: int
    groups: int
    shapes: Mapping[str, tuple[int, ...]]
    transposed: bool
    """Whether weights are stored [in, out] (Conv1D)."""
    expands: bool = False
    """Whether a key and a value are cached for each query head instead of for each KV head."""

    @property
    def per_group(self) -> int:
        """Query heads that read one KV head."""
        return self.heads // self.groups

    @property
    def width(self) -> int:
        """How many values it writes for each token."""
        return self.shapes[self._consumed(()).parameter][int(self.transposed)]

    @property
    def output_outside(self) -> str | None:
        """The path of the output projection if it lies outside of the block."""
        return _absolute(self.path, self.layout.output) if self.layout.output.startswith(".") else None

    @classmethod
    def read(cls, layout: AttentionLayout, model: nn.Module, path: str) -> AttentionBlock:
        """Measure the block; see ``AttentionLayout.read``."""
        block = model.get_submodule(path)
        head_dim = getattr(block, layout.head_dim, None)
        if not isinstance(head_dim, int):
            raise UnsupportedModelError(f"{path} has no {layout.head_dim}, so the size of its heads is not known")
        names = [_absolute(path, name) for name in (*layout.projections, layout.output)]
        linears = [_linear(model, name) for name in names]
        for name in layout.gates:
            _linear(model, _absolute(path, name))
        transposed = isinstance(linears[0], Conv1D)
        outputs = [_features(linear)[1] for linear in linears[:-1]]
        heads = _features(linears[-1])[0] // head_dim
        groups = outputs[1] // head_dim if layout.packing is Packing.SEPARATE else (outputs[0] // head_dim - heads) // 2
        shapes = {
            f"{name}.{leaf}": tuple(parameter.shape)
            for name, linear in zip(names, linears, strict=True)
            for leaf, parameter in linear.named_parameters()
        }
        shapes |= {f"{path}.{leaf}": tuple(parameter.shape) for leaf, parameter in block.named_parameters()}
        expands = layout.expands is not None and bool(getattr(block, layout.expands))
        found = cls(layout, path, head_dim, heads, groups, shapes, transposed, expands)
        found.check_sizes(dict(zip(names, linears, strict=True)))
        return found

    def check_sizes(self, linears: Mapping[str, nn.Module]) -> None:
        """Raise UnsupportedModelError unless every weight has the size that heads and groups give it."""
        query, both = self.heads * self.head_dim, self.groups * self.head_dim
        asked = query * (1 + self.layout.gated_query)
        wanted = [asked, both, both] if self.layout.packing is Packing.SEPARATE else [query + 2 * both]
        if not self.groups or self.heads % self.groups:
            raise UnsupportedModelError(f"{self.path}: {self.heads} query heads do not divide among {self.groups}")
        for (name, linear), width in zip(list(linears.items())[:-1], wanted, strict=True):
            if _features(linear)[1] != width:
                raise UnsupportedModelError(f"{name} has {_features(linear)[1]} outputs, expected {width}")
        output, linear = list(linears.items())[-1]
        if _features(linear)[0] != query:
            raise UnsupportedModelError(f"{output} has {_features(linear)[0]} inputs, expected {query}")
        self._check_described(linears)

    def _check_described(self, linears: Mapping[str, nn.Module]) -> None:
        known = {part.parameter for part in self.group_slices()} | {f"{list(linears)[-1]}.bias"}
        width = _features(list(linears.values())[-1])[1]
        for name, shape in self.shapes.items():
            module = name.removeprefix(f"{self.path}.").rpartition(".")[0]
            stays = module in self.layout.shared and shape == (self.head_dim,)
            stays = stays or (module in self.layout.whole and shape == (width,))
            if name not in known and not stays:
                raise UnsupportedModelError(
                    f"{name} with shape {shape} is not part of the known attention layout; "
                    "removing heads around it cannot be proven sound"
                )

    def group_slices(self) -> tuple[Slice, ...]:
        """What goes with a KV group: its key, its value, and all queries that read it."""
        n, d = self.per_group, self.head_dim
        query, key = ((0, n * d),), ((0, d),)
        packed: list[tuple[tuple[int, int], ...]]
        if self.layout.packing is Packing.SEPARATE:
            packed = [((0, n * d * (1 + self.layout.gated_query)),), key, key]
        elif self.layout.packing is Packing.GROUPS:
            packed = [((0, (n + 2) * d),)]
        else:
            keys = self.heads * d
            packed = [((0, n * d), (keys, d), (keys + self.groups * d, d))]
        produced = zip(self.layout.projections, packed, strict=True)
        parts = [part for name, segments in produced for part in self._produced(name, segments)]
        parts += [part for name in self.layout.gates for part in self._produced(name, query)]
        parts += self._norms(self.layout.key_norms, 1) + self._norms(self.layout.query_norms, n)
        parts += self._whole_norm(self.layout.whole_key_norm, 1, key)
        parts += self._whole_norm(self.layout.whole_query_norm, 0, query)
        return (*parts, *self._per_head(n), *self._bias_table(n), self._consumed(query))

    def query_slices(self, group: int) -> tuple[Slice, ...]:
        """What goes with one query head of a group whose key and value stay."""
        n, d = self.per_group, self.head_dim
        first = group * n
        interleaved = self.layout.packing is Packing.GROUPS
        wide = d * (1 + self.layout.gated_query)
        segments = ((group * (n + 2) * d if interleaved else first * wide, wide),)
        parts = self._produced(self.layout.projections[0], segments)
        parts += [part for name in self.layout.gates for part in self._produced(name, ((first * d, d),))]
        parts += self._norms(self.layout.query_norms, 1, first)
        parts += self._whole_norm(self.layout.whole_query_norm, 0, ((first * d, d),))
        return (*parts, *self._per_head(1, first), *self._bias_table(1, first), self._consumed(((first * d, d),)))

    def hidden_slices(self) -> tuple[Slice, ...]:
        """What reads the hidden channels (queries, keys and values), and what writes them."""
        output = _absolute(self.path, self.layout.output)
        parts = [
            Slice(f"{_absolute(self.path, name)}.weight", int(not self.transposed), role=Role.CONSUME)
            for name in (*self.layout.projections, *self.layout.gates)
        ]
        parts.append(Slice(f"{output}.weight", int(self.transposed), role=Role.PRODUCE))
        return (*parts, Slice(f"{output}.bias", 0)) if f"{output}.bias" in self.shapes else tuple(parts)

    def head_norms(self) -> Iterator[tuple[str, str]]:
        """The norms of queries and keys, each with the projection whose outputs it normalises.

        Raises UnsupportedModelError where several of them share one projection.
        """
        layout = self.layout
        queries = (*layout.shared[:1], *layout.query_norms, layout.whole_query_norm)
        keys = (*layout.shared[1:], *layout.key_norms, layout.whole_key_norm)
        for projection, names in enumerate((queries, keys)):
            for norm in [f"{self.path}.{name}" for name in names if name is not None]:
                if any(parameter.startswith(f"{norm}.") for parameter in self.shapes):
                    if layout.packing is not Packing.SEPARATE:
                        raise UnsupportedModelError(f"{norm} normalises a part of the outputs of a fused projection")
                    yield norm, _absolute(self.path, layout.projections[projection])

    def _produced(self, name: str, segments: tuple[tuple[int, int], ...]) -> list[Slice]:
        path = _absolute(self.path, name)
        found = [Slice(f"{path}.weight", int(self.transposed), segments, Role.PRODUCE)]
        if f"{path}.bias" in self.shapes:
            found.append(Slice(f"{path}.bias", 0, segments))
        return found

    def _consumed(self, segments: tuple[tuple[int, int], ...]) -> Slice:
        path = _absolute(self.path, self.layout.output)
        return Slice(f"{path}.weight", int(not self.transposed), segments, Role.CONSUME)

    def _norms(self, names: tuple[str, ...], heads: int, first: int = 0) -> list[Slice]:
        parts = []
        for parameter, shape in self.shapes.items():
            if any(parameter.startswith(f"{self.path}.{name}.") for name in names):
                block = heads if len(shape) == 2 else heads * self.head_dim
                parts.append(Slice(parameter, 0, ((first * block // heads, block),)))
        return parts

    def _whole_norm(self, name: str | None, projection: int, segments: tuple[tuple[int, int], ...]) -> list[Slice]:
        if name is None:
            return []
        source = _absolute(self.path, self.layout.projections[projection])
        return [Slice(f"{self.path}.{name}.weight", 0, segments, Role.NORM, source=source)]

    def _per_head(self, heads: int, first: int = 0) -> Iterator[Slice]:
        for name in self.layout.a_head:
            yield Slice(f"{self.path}.{name}", 0, ((first, heads),))

    def _bias_table(self, heads: int, first: int = 0) -> Iterator[Slice]:
        name = f"{self.path}.{self.layout.bias_table}.weight"
        if self.layout.bias_table is not None and name in self.shapes:
            yield Slice(name, 1, ((first, heads),))


def unit_kind(block: AttentionBlock, *, query_heads: bool) -> Kind:
    """KV groups, or the query heads inside them if asked for, or if there is only one KV head (multi-query)."""
    inside = query_heads or (block.groups == 1 and block.heads > 1)
    return Kind.QUERY_HEADS if inside else Kind.KV_GROUPS


def _absolute(path: str, name: str) -> str:
    return f"{path.rpartition('.')[0]}{name}" if name.startswith(".") else f"{path}.{name}"


def _linear(model: nn.Module, name: str) -> nn.Module:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise UnsupportedModelError(f"there is no {name}, which the attention layout names") from None
    if not isinstance(module, nn.Linear | Conv1D):
        raise UnsupportedModelError(f"{name} is not a linear layer but {type(module).__name__}")
    return module


def _features(linear: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a Linear or Conv1D."""
    shape = linear.get_parameter("weight").shape
    return (shape[0], shape[1]) if isinstance(linear, Conv1D) else (shape[1], shape[0])
