"""Compact: the tensors that a plan leaves, and the model around them, a stock class or a resized one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from passes.attention import AttentionBlock
from passes.compact_modeling import PREFIX, compact_class
from passes.constants import embedding_scale
from passes.families import attention_blocks, family_of
from passes.graph import Dimension, Kind, PruningGraph, Slice
from passes.rescale import UNSCALED, Scales, rescales
from passes.stock import build_stock, compact_config, filled, larger_epsilons, stock_class, twin_of

Kept = Mapping[str, Sequence[int]]
"""The kept units, ascending, a dimension name."""


def build_compact(model: PreTrainedModel, graph: PruningGraph, kept: Kept) -> PreTrainedModel:
    """The compact model of these kept units; ``model`` stays as it is.

    It is of the stock class where that holds all widths, else of a subclass that resizes it
    (``passes.compact_modeling``).
    """
    counts = {d.width: len(kept[d.name]) for d in graph.dimensions}
    stock = all(counts[width.name] in width.stock for width in graph.widths)
    config = compact_config(model.config, graph, counts) if stock else resized_config(model, graph, kept)
    state = cut_state(model.state_dict(), graph, kept, tied_names(model), embedding_scales(model, config))
    if stock:
        return build_stock(config, state, like=model)
    with no_init_weights():
        resized = cast(Any, compact_class(type(model)))._from_config(
            config, attn_implementation=model.config._attn_implementation
        )
    return filled(resized, state, like=model)


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
    kept: Kept,
    tied: Mapping[str, str] | None = None,
    scales: Scales = UNSCALED,
) -> dict[str, torch.Tensor]:
    """The tensors that are left of a state dict. ``tied`` are those under a second name (see ``tied_names``)."""
    rescaled = rescales(graph, {name: len(units) for name, units in kept.items()}, scales)
    left = {}
    for name, tensor in state.items():
        first = (tied or {}).get(name, name)
        parts = graph.slices_of.get(first, ())
        if parts:
            tensor = cut(tensor, parts, kept)
        if first in rescaled:
            tensor = rescaled[first](tensor)
        left[name] = tensor
    return left


def cut(tensor: torch.Tensor, parts: Sequence[tuple[Dimension, Slice]], kept: Kept) -> torch.Tensor:
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


def resized_config(model: PreTrainedModel, graph: PruningGraph, kept: Kept) -> PreTrainedConfig:
    """The dense configuration with the entry ``compact`` that ``passes.compact_modeling`` reads."""
    counts = {name: len(units) for name, units in kept.items()}
    shapes = {name: list(graph.shape(name, counts)) for name in graph.shapes}
    compact: dict[str, Any] = {
        "shapes": {name: shape for name, shape in shapes.items() if tuple(shape) != graph.shapes[name]},
        "attributes": {},
        "heads": {},
    }
    for block in attention_blocks(model, family_of(model.config)):
        heads = kept_heads(block, graph, kept)
        attributes = _attributes(model, block, len(heads), graph, kept)
        if attributes:
            compact["attributes"][block.path] = attributes
        if block.layout.head_inputs:
            arguments = list(block.layout.head_inputs)
            compact["heads"][block.path] = {"arguments": arguments, "dense": block.heads, "kept": heads}
    for dimension in graph.of_kind(Kind.EXPERTS):
        for path in sorted({part.module for part in dimension.slices}):
            if hasattr(model.get_submodule(path), "num_experts"):
                compact["attributes"][path] = {"num_experts": len(kept[dimension.name])}
    values = model.config.to_dict()
    named = [f"{PREFIX}{type(model).__name__}"]
    widths = {width.name: width for width in graph.widths}
    for dimension in graph.of_kind(Kind.HIDDEN):  # the stock class itself has this size, and no other of the new ones
        values |= dict.fromkeys(widths[dimension.width].entries, len(kept[dimension.name]))
        values |= graph.fixed_entries
        values |= larger_epsilons(model.config, graph, {dimension.width: len(kept[dimension.name])})
    return type(model.config).from_dict({**values, "architectures": named, "compact": compact})


def _dimensions_of(block: AttentionBlock, graph: PruningGraph) -> list[Dimension]:
    consumer = block.group_slices()[-1].parameter
    return [dimension for dimension, _ in graph.slices_of[consumer] if dimension.stream is None]


def kept_heads(block: AttentionBlock, graph: PruningGraph, kept: Kept) -> list[int]:
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
    model: PreTrainedModel, block: AttentionBlock, heads: int, graph: PruningGraph, kept: Kept
) -> dict[str, int]:
    first = _dimensions_of(block, graph)[0]
    groups = len(kept[first.name]) if first.kind is Kind.KV_GROUPS else block.groups
    sizes = {"heads": heads, "groups": groups, "width": heads * block.head_dim}
    found = {name: sizes[size] for name, size in block.layout.attributes.items()}
    if hasattr(model.get_submodule(block.path), "num_key_value_groups"):
        found["num_key_value_groups"] = heads // groups
    return found
