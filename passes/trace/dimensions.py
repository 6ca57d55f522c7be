"""The dimensions of a model: heads as attention blocks describe them, MLP channels as torch-pruning finds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from torch import nn
from transformers.pytorch_utils import Conv1D

from passes.errors import UnsupportedModelError
from passes.families import AttentionBlock, Family, unit_kind
from passes.graph import Dimension, Kind, Role, Slice, layer_path
from passes.models import Task
from passes.trace.dependencies import CoupledModule, Dependencies, Opaque, outputs_of
from passes.trace.widths import HeadShape


@dataclass(frozen=True)
class DimensionFinder:
    """Names the dimensions of a model's blocks, and finds its MLPs. ``query_heads`` is ``TraceOptions.query_heads``."""

    family: Family
    task: Task
    attention: Sequence[AttentionBlock]
    query_heads: bool

    def stack(self, path: str) -> str:
        """``encoder`` or ``decoder`` in an encoder-decoder, else nothing."""
        if self.task is not Task.SEQ2SEQ_LM:
            return ""
        return "decoder" if "decoder" in path.split(".") else "encoder"

    def layer(self, path: str) -> int:
        """The number of the layer that a path is in."""
        return int(layer_path(path).rpartition(".")[2])

    def prefix(self, path: str) -> str:
        """How the names of a layer's dimensions begin."""
        stack = self.stack(path)
        return f"{stack}.layers.{self.layer(path)}" if stack else f"layers.{self.layer(path)}"

    def caches(self, block: AttentionBlock) -> bool:
        """Whether the block's keys and values are cached, a target token each."""
        decoder = self.task is Task.CAUSAL_LM or self.stack(block.path) == "decoder"
        return decoder and not block.layout.cross

    def attention_dimensions(self) -> list[Dimension]:
        """KV groups or query heads of every block; those of blocks that share a bias table are one dimension."""
        joined: dict[str, list[Dimension]] = {}
        for block in self.attention:
            for dimension in self._of_block(block):
                joined.setdefault(dimension.name, []).append(dimension)
        return [
            replace(
                same[0],
                slices=tuple(part for each in same for part in each.slices),
                cache_elements=sum(each.cache_elements for each in same),
            )
            for same in joined.values()
        ]

    def width_of(self, block: AttentionBlock) -> str:
        """The width that the block's heads belong to."""
        kind = unit_kind(block, query_heads=self.query_heads)
        return block.layout.width.format(kind=kind, stack=self.stack(block.path))

    def head_shapes(self) -> dict[str, HeadShape]:
        """How heads lie, a width. Raises UnsupportedModelError where the blocks of one width differ."""
        found: dict[str, HeadShape] = {}
        for block in self.attention:
            shape = HeadShape(block.per_group, block.groups, block.head_dim)
            if found.setdefault(self.width_of(block), shape) != shape:
                raise UnsupportedModelError(
                    f"{block.path} has other heads ({shape}) than the blocks before it; layers that already differ in "
                    "width are not supported yet"
                )
        return found

    def _of_block(self, block: AttentionBlock) -> Iterator[Dimension]:
        kind = unit_kind(block, query_heads=self.query_heads)
        label = f"cross_{kind}" if block.layout.cross else str(kind)
        shared = block.layout.bias_table is not None
        prefix, layer = (self.stack(block.path), 0) if shared else (self.prefix(block.path), self.layer(block.path))
        width = self.width_of(block)
        name = f"{prefix}.{label}".lstrip(".")
        a_head = 2 * block.head_dim if self.caches(block) else 0
        if kind is Kind.KV_GROUPS:
            cached = a_head * (block.per_group if block.expands else 1)
            yield Dimension(name, kind, layer, block.groups, block.group_slices(), width, cached)
            return
        for group in range(block.groups):
            lane, cached = name if block.groups == 1 else f"{name}.{group}", a_head if block.expands else 0
            yield Dimension(lane, kind, layer, block.per_group, block.query_slices(group), width, cached)

    def untouched(self) -> dict[str, str]:
        """Why KV heads stay where only their query heads can go."""
        if any(block.groups == 1 and block.heads > 1 for block in self.attention):
            return {str(Kind.KV_GROUPS): "one KV head serves all query heads (multi-query), so only query heads can go"}
        return {str(Kind.KV_GROUPS): "kept, as asked: only query heads go"} if self.query_heads else {}

    def fixed_cache_elements(self) -> int:
        """Cached elements a token of the blocks whose KV heads all stay."""
        return sum(map(self.fixed_cache_of, self.attention))

    def fixed_cache_of(self, block: AttentionBlock) -> int:
        """The same of one block; 0 if its KV heads can go."""
        inside = unit_kind(block, query_heads=self.query_heads) is Kind.QUERY_HEADS
        return 2 * block.groups * block.head_dim if inside and self.caches(block) and not block.expands else 0

    def channel_dimensions(
        self, dependencies: Dependencies, layers: set[str]
    ) -> tuple[list[Dimension], list[CoupledModule]]:
        """The MLP channels between the linear layers of each layer, and the members of the residual stream."""
        found, residual, claimed = [], list[CoupledModule](), set[str]()
        for name, module in dependencies.twin.named_modules():
            inside = layer_path(name) in layers and isinstance(module, nn.Linear | Conv1D | Opaque)
            if not inside or name in claimed or not dependencies.is_traced(module):
                continue
            members = list(dependencies.members(module, (0,)))
            claimed |= {member.name for member in members if member.produces}
            leaves = any(layer_path(member.name) != layer_path(name) for member in members)
            if leaves or isinstance(module, Opaque):
                residual += members
            else:
                last = list(dependencies.members(module, (_units(members, name, module) - 1,)))
                found.append(self._channels(name, members, last))
        return _named_apart(found), residual

    def _channels(self, name: str, members: list[CoupledModule], last: list[CoupledModule]) -> Dimension:
        size = _units(members, name, members[0].module)
        slices: dict[tuple[str, bool], Slice] = {}
        for member, end in zip(members, last, strict=True):
            expected = tuple(index + size - 1 for index in member.indices)
            if not isinstance(member.module, nn.Linear | Conv1D) or end.indices != expected:
                kind_of_it = type(member.module).__name__
                how = ", and takes their mean, so that none goes alone" if "Norm" in kind_of_it else ""
                raise UnsupportedModelError(
                    f"{member.name} ({kind_of_it}) is coupled with the MLP channels of {name}"
                    f"{how or ' in a way that is not understood'}"
                )
            for part in linear_slices(member):
                slices.setdefault((part.parameter, member.produces), part)
        kind, stack = Kind.MLP_CHANNELS, self.stack(name)
        width = self.family.channels_width.format(stack=stack)
        return Dimension(f"{self.prefix(name)}.{kind}", kind, self.layer(name), size, tuple(slices.values()), width)


def _named_apart(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """The channels of all MLPs, where those of further ones in a layer get a number behind their name.

    Raises UnsupportedModelError if the MLPs of one layer differ in width.
    """
    found: dict[str, Dimension] = {}
    for dimension in dimensions:
        first = found.setdefault(dimension.name, dimension)
        if first is dimension:
            continue
        if first.size != dimension.size:
            raise UnsupportedModelError(
                f"{first.name} are {first.size} in {first.slices[0].parameter} and {dimension.size} in "
                f"{dimension.slices[0].parameter}, and MLPs of one layer that differ in width are not supported"
            )
        number = next(n for n in count(1) if f"{first.name}.{n}" not in found)
        found[f"{first.name}.{number}"] = replace(dimension, name=f"{first.name}.{number}")
    return list(found.values())


def _units(members: list[CoupledModule], name: str, module: nn.Module) -> int:
    """Channels of a dimension: a fused layer of several halves has as many outputs a channel."""
    halves = next(len(member.indices) for member in members if member.name == name)
    return outputs_of(module) // halves


def linear_slices(member: CoupledModule) -> Iterator[Slice]:
    """What a linear layer's outputs or inputs own of it, the indices of the member being those of unit 0."""
    transposed = isinstance(member.module, Conv1D)
    segments = tuple((index, 1) for index in member.indices)
    if member.produces:
        yield Slice(f"{member.name}.weight", int(transposed), segments, Role.PRODUCE)
        if getattr(member.module, "bias", None) is not None:
            yield Slice(f"{member.name}.bias", 0, segments)
    else:
        yield Slice(f"{member.name}.weight", int(not transposed), segments, Role.CONSUME)
