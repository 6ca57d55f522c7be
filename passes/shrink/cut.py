"""Compact: the tensors that a plan leaves, and the model around them, a stock class or a resized one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from passes.families import AttentionBlock
from passes.graph import Dimension, Kind, PruningGraph, Renumbering, Slice
from passes.models import build_stock, compact_class, filled, has_own_sizes, shell, stock_class, twin_of
from passes.shrink.absent import present_attention, with_absent
from passes.shrink.config import (
    check_buildable,
    compact_config,
    larger_epsilons,
    naming,
    per_layer_config,
    uniform_counts,
)
from passes.shrink.layers import without_layers
from passes.shrink.rescale import UNSCALED, Rescale, Scales, embedding_scale, rescales

KeptUnits = Mapping[str, Sequence[int]]
"""The kept units, ascending, a dimension name."""


def build_compact(model: PreTrainedModel, graph: PruningGraph, kept: KeptUnits) -> PreTrainedModel:
    """The compact model of these kept units; ``model`` stays as it is.

    It is of the stock class where that holds all widths, else of a subclass that resizes it
    (``passes.models.resized``). Where layers differ, its configuration says so in transformers' own
    ``per_layer_config`` if that can say it. Raises PlanError if no such model can be built.
    """
    model, graph, kept = without_layers(model, graph, kept)
    check_buildable(graph, kept)
    stock, config = sized(model, graph, kept)
    state = cut_state(model.state_dict(), graph, kept, tied_names(model), embedding_scales(model, config))
    if not has_own_sizes(config):
        return build_stock(config, state, like=model)
    kind = cast("type[PreTrainedModel]", compact_class(stock))
    return filled(shell(kind, config, model), state, like=model)


def sized(
    model: PreTrainedModel, graph: PruningGraph, kept: KeptUnits
) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """The stock class of the compact model, and its configuration, which says if the class is to be resized."""
    counts = uniform_counts(graph, kept)
    if counts is not None and all(counts.get(width.name, width.size) in width.stock for width in graph.widths):
        config = compact_config(model.config, graph, counts)
        stock = stock_class(type(model), config)
        return stock, absent_config(config, model, graph, kept) if graph.removed(kept) else config
    by_layer = per_layer_config(model, graph, kept) if counts is None else None
    return type(model), by_layer or resized_config(model, graph, kept)


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """The parameters that are others under a second name, with the names of those."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    both = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in both if first[id(parameter)] != name}


def embedding_scales(model: PreTrainedModel, config: PreTrainedConfig) -> Scales:
    """What the token embedding is multiplied by in a model and in the compact one of this configuration."""
    dense = embedding_scale(model)
    if dense == 1:
        return UNSCALED
    twin = twin_of(stock_class(type(model), config), config).to(model.dtype)
    tied = model.get_output_embeddings() is not None and bool(config.tie_word_embeddings)
    return Scales(dense, embedding_scale(twin), tied)


def cut_state(
    state: Mapping[str, torch.Tensor],
    graph: PruningGraph,
    kept: KeptUnits,
    tied: Mapping[str, str] | None = None,
    scales: Scales = UNSCALED,
) -> dict[str, torch.Tensor]:
    """The tensors that are left of a state dict. ``tied`` are those under a second name (see ``tied_names``)."""
    cutting = Cutting(graph, kept, tied or {}, scales)
    return {name: cutting(name, tensor) for name, tensor in state.items()}


@dataclass(frozen=True)
class Cutting:
    """What becomes of each tensor of a model of which these units stay; ``tied`` and ``scales`` as in ``cut_state``."""

    graph: PruningGraph
    kept: KeptUnits
    tied: Mapping[str, str] = field(default_factory=dict)
    scales: Scales = UNSCALED

    @cached_property
    def _rescaled(self) -> Mapping[str, Rescale]:
        return rescales(self.graph, self.kept, self.scales)

    @cached_property
    def _gone(self) -> frozenset[str]:
        return self.graph.gone(self.kept)

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What is left of one tensor."""
        if name in self._gone:
            return tensor[..., :0].clone()  # not the first axis: transformers saves stacks an expert at a time
        first = self.tied.get(name, name)
        parts = self.graph.cuts_of.get(first, ())
        tensor = cut_tensor(tensor, parts, self.kept) if parts else tensor
        return self._rescaled[first](tensor) if first in self._rescaled else tensor


def cutting_of(
    model: PreTrainedModel, compact: PreTrainedModel, graph: PruningGraph, kept: KeptUnits
) -> Callable[[str, torch.Tensor], tuple[str, torch.Tensor] | None]:
    """A function from a tensor of ``model``, by its name, to that of ``compact`` with its name, or None if it is gone.

    ``compact`` is what ``build_compact`` makes of it; neither model needs values.
    """
    renumbering = Renumbering.of(graph, kept)
    model, graph, kept = without_layers(model, graph, kept)
    cutting = Cutting(graph, kept, tied_names(model), embedding_scales(model, compact.config))

    def cut_one(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor] | None:
        now = name if renumbering is None else renumbering.name(name)
        return None if now is None else (now, cutting(now, tensor))

    return cut_one


def cut_tensor(tensor: torch.Tensor, parts: Sequence[tuple[Dimension, Slice]], kept: KeptUnits) -> torch.Tensor:
    """One parameter without the removed units of the dimensions that have a slice of it."""
    stacked: dict[int, dict[int, list[int]]] = {}
    gone: dict[int, set[int]] = {}
    for dimension, part in parts:
        removed = part.indices(sorted(set(range(dimension.size)) - set(kept[dimension.name])))
        if part.at is None:
            gone.setdefault(part.axis, set()).update(removed)
        elif removed:
            stacked.setdefault(part.axis, {})[part.at] = removed
    for axis, lanes in stacked.items():
        tensor = torch.stack([_without(tensor[at], axis - 1, lanes.get(at, ())) for at in range(len(tensor))])
    for axis, removed_indices in gone.items():
        tensor = _without(tensor, axis, removed_indices)
    return tensor.contiguous()


def _without(tensor: torch.Tensor, axis: int, removed: Sequence[int] | set[int]) -> torch.Tensor:
    if not removed:
        return tensor
    left = torch.ones(tensor.shape[axis], dtype=torch.bool)
    left[list(removed)] = False
    return tensor.index_select(axis, left.nonzero().flatten().to(tensor.device))


def resized_config(model: PreTrainedModel, graph: PruningGraph, kept: KeptUnits) -> PreTrainedConfig:
    """The dense configuration with the entry ``compact`` that ``passes.models.resized`` reads."""
    shapes = {name: list(shape) for name, shape in graph.shapes_left(kept).items()}
    compact: dict[str, Any] = {
        "shapes": {name: shape for name, shape in shapes.items() if tuple(shape) != graph.shapes[name]},
        "attributes": {},
        "heads": {},
    }
    passed_on: dict[str, int] = {}
    for block in present_attention(model, graph, kept):
        heads = kept_heads(block, graph, kept)
        attributes = _attributes(model, block, len(heads), graph, kept)
        if attributes:
            compact["attributes"][block.path] = attributes
        if block.layout.head_inputs:
            arguments = list(block.layout.head_inputs)
            compact["heads"][block.path] = {"arguments": arguments, "dense": block.heads, "kept": heads}
        elif block.layout.passes_on:
            # What the first block passes on is the same for all heads, and one entry broadcasts to any number.
            first = passed_on.setdefault(block.layout.block, len(heads))
            compact["heads"][block.path] = {"arguments": [block.layout.passes_on], "dense": first, "kept": [0]}
    for dimension in graph.dimensions:
        count = len(kept[dimension.name])
        compact["shapes"] |= {part.parameter: [count] for part in dimension.buffers if count < dimension.size}
    for dimension in graph.of_kind(Kind.EXPERTS):
        for path in sorted({part.module for part in dimension.slices} if kept[dimension.name] else ()):
            if hasattr(model.get_submodule(path), "num_experts"):
                compact["attributes"][path] = {"num_experts": len(kept[dimension.name])}
    return with_compact(_shared_config(model, graph, kept), type(model), with_absent(compact, model, graph, kept))


def _shared_config(model: PreTrainedModel, graph: PruningGraph, kept: KeptUnits) -> PreTrainedConfig:
    """The model's configuration with the hidden size that is left, which the stock class itself has."""
    values: dict[str, Any] = {}
    for dimension in graph.of_kind(Kind.HIDDEN):
        count = len(kept[dimension.name])
        values |= dict.fromkeys(graph.width(dimension.width).entries, count)
        values |= graph.fixed_entries
        values |= larger_epsilons(model.config, graph, {dimension.width: count})
    return type(model.config).from_dict({**model.config.to_dict(), **values}) if values else model.config


def absent_config(
    config: PreTrainedConfig, model: PreTrainedModel, graph: PruningGraph, kept: KeptUnits
) -> PreTrainedConfig:
    """The configuration of a stock class that holds all widths, with the blocks that are gone."""
    shapes = {name: list(graph.shape(name, kept)) for name in sorted(graph.gone(kept))}
    compact = with_absent({"shapes": shapes, "attributes": {}, "heads": {}}, model, graph, kept)
    return with_compact(config, stock_class(type(model), config), compact)


def with_compact(config: PreTrainedConfig, stock: type[PreTrainedModel], compact: dict[str, Any]) -> PreTrainedConfig:
    """The configuration with the entry ``compact``, naming the resized class and its file."""
    return type(config).from_dict({**config.to_dict(), **naming(stock, config), "compact": compact})


def _dimensions_of(block: AttentionBlock, graph: PruningGraph) -> list[Dimension]:
    consumer = block.group_slices()[-1].parameter
    return [dimension for dimension, _ in graph.slices_of[consumer] if dimension.stream is None]


def kept_heads(block: AttentionBlock, graph: PruningGraph, kept: KeptUnits) -> list[int]:
    """The query heads of a block that are left, by their number in the dense model."""
    n, heads = block.per_group, list[int]()
    for lane, dimension in enumerate(_dimensions_of(block, graph)):
        units = kept[dimension.name]
        if dimension.kind is Kind.KV_GROUPS:
            heads += [group * n + i for group in units for i in range(n)]
        else:
            heads += [lane * n + unit for unit in units]
    return heads


def _attributes(
    model: PreTrainedModel, block: AttentionBlock, heads: int, graph: PruningGraph, kept: KeptUnits
) -> dict[str, int]:
    first = _dimensions_of(block, graph)[0]
    groups = len(kept[first.name]) if first.kind is Kind.KV_GROUPS else block.groups
    sizes = {"heads": heads, "groups": groups, "width": heads * block.head_dim}
    found = {name: sizes[size] for name, size in block.layout.attributes.items()}
    if hasattr(model.get_submodule(block.path), "num_key_value_groups"):
        found["num_key_value_groups"] = heads // groups
    return found
