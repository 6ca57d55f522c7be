"""Compact: the tensors that a plan leaves, and the model around them, a stock class or a resized one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from passes.absent import present_attention, with_absent
from passes.attention import AttentionBlock
from passes.compact_modeling import compact_class
from passes.graph import Dimension, Kind, PruningGraph, Role, Slice
from passes.per_layer import check_buildable, naming, per_layer_config, uniform_counts
from passes.renumber import without_layers
from passes.stock import build_stock, compact_config, filled, stock_class

Kept = Mapping[str, Sequence[int]]
"""The kept units, ascending, a dimension name."""


def build_compact(model: PreTrainedModel, graph: PruningGraph, kept: Kept) -> PreTrainedModel:
    """The compact model of these kept units; ``model`` stays as it is.

    It is of the stock class where that holds all widths, else of a subclass that resizes it
    (``passes.compact_modeling``). Where layers differ, its configuration says so in transformers' own
    ``per_layer_config`` if that can say it. Raises PlanError if no such model can be built.
    """
    model, graph, kept = without_layers(model, graph, kept)
    check_buildable(graph, kept)
    state = cut_state(model.state_dict(), graph, kept)
    counts = uniform_counts(graph, kept)
    if counts is not None and all(counts.get(width.name, width.size) in width.stock for width in graph.widths):
        config = compact_config(model.config, graph, counts)
        if not graph.removed(kept):
            return build_stock(config, state, like=model)
        stock, config = stock_class(type(model), config), absent_config(config, model, graph, kept)
    else:
        by_layer = per_layer_config(model, graph, kept) if counts is None else None
        stock, config = type(model), by_layer or resized_config(model, graph, kept)
    with no_init_weights():
        resized = cast(Any, compact_class(stock))._from_config(
            config, attn_implementation=model.config._attn_implementation
        )
    return filled(resized, state, like=model)


def cut_state(state: Mapping[str, torch.Tensor], graph: PruningGraph, kept: Kept) -> dict[str, torch.Tensor]:
    """The tensors that are left of a state dict."""
    rescaled, gone = dict(_rescales(graph, kept)), graph.gone(kept)
    left = {}
    for name, tensor in state.items():
        if name in gone:
            left[name] = tensor[..., :0].clone()  # not the first axis: transformers saves stacks an expert at a time
            continue
        parts = graph.slices_of.get(name, ())
        if parts:
            tensor = cut(tensor, parts, kept)
        if name in rescaled:
            tensor = (tensor.double() * rescaled[name]).to(tensor.dtype)
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


def _rescales(graph: PruningGraph, kept: Kept) -> Iterator[tuple[str, float]]:
    """Factors that keep an RMS norm over all units the same function when units go.

    With the outputs x of the removed units masked, x / sqrt(sum(x²) / n + eps) * w divides by the dense n. Over m units
    the same comes from producing c·x with c = sqrt(m / n) and from the weight w / c, exactly, eps included.
    """
    gone = graph.gone(kept)
    for parameter, owners in graph.slices_of.items():
        for source in {part.source for _, part in owners if part.role is Role.NORM and parameter not in gone}:
            factor = (graph.shape(parameter, kept)[0] / graph.shapes[parameter][0]) ** 0.5
            yield parameter, 1 / factor
            for leaf in ("weight", "bias"):
                if f"{source}.{leaf}" in graph.shapes:
                    yield f"{source}.{leaf}", factor


def resized_config(model: PreTrainedModel, graph: PruningGraph, kept: Kept) -> PreTrainedConfig:
    """The dense configuration with the entry ``compact`` that ``passes.compact_modeling`` reads."""
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
    for dimension in graph.of_kind(Kind.EXPERTS):
        for path in sorted({part.module for part in dimension.slices} if kept[dimension.name] else ()):
            if hasattr(model.get_submodule(path), "num_experts"):
                compact["attributes"][path] = {"num_experts": len(kept[dimension.name])}
    return with_compact(model.config, type(model), with_absent(compact, model, graph, kept))


def absent_config(
    config: PreTrainedConfig, model: PreTrainedModel, graph: PruningGraph, kept: Kept
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
    return [dimension for dimension, _ in graph.slices_of[consumer]]


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
