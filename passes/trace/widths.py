"""Widths: which entries of the configuration say them, and which counts a stock class can hold.

A stock class is asked, not believed: its model of a smaller configuration is built on the meta device and must have
exactly the shapes that the graph predicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig, PreTrainedModel

from passes.errors import LpcError
from passes.families import Family
from passes.graph import Kind, PruningGraph, Width
from passes.models import reason, stock_class, twin_of
from passes.shrink import compact_config
from passes.trace.norms import odd_constant

ALIGNED = 8
"""torch's grouped matrix product, which runs experts, wants rows of a multiple of 16 bytes: 8 channels in bf16."""

ENDS = 8
"""As many counts at either end of a range are tried for whether a configuration accepts all of it."""


@dataclass(frozen=True)
class HeadShape:
    """How the heads of a width lie: query heads a KV head, KV heads a block, values a head."""

    per_group: int
    groups: int
    head_dim: int


def find_widths(
    graph: PruningGraph,
    family: Family,
    config: PreTrainedConfig,
    model_type: type[PreTrainedModel],
    heads: Mapping[str, HeadShape],
    *,
    custom_code: bool,
) -> PruningGraph:
    """The graph with its widths; and for those that must stay as they are, the reason."""
    widths = [_unsettled(graph, family, name, heads.get(name)) for name in {d.width: None for d in graph.dimensions}]
    sizes = [(family.head_dim, shape.head_dim) for shape in heads.values()]
    fixed = {entry: size for entry, size in sizes if entry is not None}
    graph = replace(graph, widths=tuple(widths), fixed_entries=fixed)
    settled, untouched = list[Width](), dict(graph.untouched)
    for width in widths:
        stock, reason = _stock_counts(graph, family, width, config, model_type, settled)
        anything = custom_code and width.kind is not Kind.HIDDEN
        counts = (*_candidates(graph, width), width.size) if anything else stock
        settled.append(replace(width, counts=counts, stock=stock))
        if reason is not None and not anything:
            untouched[width.name] = reason
    return replace(graph, widths=tuple(settled), untouched=untouched)


def _unsettled(graph: PruningGraph, family: Family, name: str, heads: HeadShape | None) -> Width:
    first, *_ = graph.of_width(name)
    stack = first.name.partition(".")[0]
    entries: dict[str | None, int] = {}
    if first.kind is Kind.KV_GROUPS and heads is not None:
        entries = {family.heads: heads.per_group, family.kv_heads: 1}
    elif first.kind is Kind.QUERY_HEADS and heads is not None:
        entries = {family.heads: heads.groups}
    elif first.kind is Kind.MLP_CHANNELS:
        entries = {family.channels: 1}
    elif first.kind is Kind.EXPERTS:
        entries = {family.experts: 1}
    elif first.kind is Kind.EXPERT_CHANNELS:
        entries = {family.expert_channels: 1}
    elif first.kind is Kind.HIDDEN:
        entries = {"hidden_size": 1}
    named = {entry.format(stack=stack): factor for entry, factor in entries.items() if entry is not None}
    epsilon = family.epsilon if first.kind is Kind.HIDDEN else None
    return Width(name, first.kind, first.size, (first.size,), entries=named, epsilon=epsilon)


def _candidates(graph: PruningGraph, width: Width) -> Sequence[int]:
    """The counts below the dense one with which the layer itself can run."""
    if width.kind in (Kind.EXPERT_CHANNELS, Kind.HIDDEN):
        return range(ALIGNED, width.size, ALIGNED)
    return range(graph.experts_per_token if width.kind is Kind.EXPERTS else 1, width.size)


def _stock_counts(
    graph: PruningGraph,
    family: Family,
    width: Width,
    config: PreTrainedConfig,
    model_type: type[PreTrainedModel],
    settled: Sequence[Width],
) -> tuple[tuple[int, ...], str | None]:
    """The counts that the stock class holds, and if it is only the dense one, why."""
    dense = (width.size,)
    if width.size == 1:
        return dense, "there is only one, which has to stay"
    if width.kind in (Kind.KV_GROUPS, Kind.QUERY_HEADS) and family.why_fixed_heads:
        return dense, family.why_fixed_heads
    if not width.entries:
        return dense, f"no entry of {type(config).__name__} says how many {width.kind} there are"
    counts = _candidates(graph, width)
    if width.kind is Kind.HIDDEN:
        if not isinstance(getattr(config, str(width.epsilon), None), float):
            return dense, f"no entry of {type(config).__name__} says the epsilon of its norms"
        counts = _accepted_with_all(graph, width, config, settled)
    elif not width.kind.is_fine and not all(_accepted(graph, {width.name: count}, config) for count in _ends(counts)):
        counts = [count for count in counts if _accepted(graph, {width.name: count}, config)]
    if not counts:
        return dense, f"{type(config).__name__} accepts no other number of {width.kind} units"
    why_not = _mismatch(graph, width, counts[0], config, model_type)
    return (dense, why_not) if why_not else ((*counts, width.size), None)


def _accepted_with_all(
    graph: PruningGraph, width: Width, config: PreTrainedConfig, settled: Sequence[Width]
) -> Sequence[int]:
    """The counts of a width that the configuration accepts with every allowed number of heads.

    A configuration may ask that heads divide the hidden size. Where it accepts both ends of the range, it does not.
    """
    counts = list(_candidates(graph, width))
    for heads in [each for each in settled if each.kind in (Kind.KV_GROUPS, Kind.QUERY_HEADS)]:
        for number in heads.stock:
            if not all(_accepted(graph, {width.name: count, heads.name: number}, config) for count in _ends(counts)):
                counts = [c for c in counts if _accepted(graph, {width.name: c, heads.name: number}, config)]
    return counts


def _ends(counts: Sequence[int]) -> Sequence[int]:
    """What is tried of a range first: where a configuration accepts both ends of it, it accepts all of it."""
    return [*counts[:ENDS], *counts[-ENDS:]] if len(counts) > 2 * ENDS else counts


def _accepted(graph: PruningGraph, counts: Mapping[str, int], config: PreTrainedConfig) -> bool:
    try:
        compact_config(config, graph, counts)
    except (LpcError, ValueError, TypeError):
        return False
    except Exception as error:  # the validation errors of transformers' configurations have no common base
        if "Validation" in type(error).__name__:
            return False
        raise
    return True


def _mismatch(
    graph: PruningGraph, width: Width, count: int, config: PreTrainedConfig, model_type: type[PreTrainedModel]
) -> str | None:
    """Why the stock model of this count is not the one that the graph predicts, or None if it is."""
    left = graph.shapes_left(graph.uniform({width.name: count}))
    try:
        smaller = compact_config(config, graph, {width.name: count})
        twin = twin_of(stock_class(model_type, smaller), smaller)
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        return f"the stock class cannot be built with {count} {width.kind}: {reason(error)}"
    shapes = {name: tuple(parameter.shape) for name, parameter in twin.named_parameters()}
    for name in sorted({*shapes, *graph.shapes}):
        wanted = left.get(name)
        if shapes.get(name) != wanted:
            return f"with {count} {width.kind} the stock class makes {name} {shapes.get(name)}, not {wanted}"
    for dimension in graph.of_width(width.name):
        if dimension.stream is not None:
            return odd_constant(twin_of(model_type, config), twin, dimension, count)
    return None
