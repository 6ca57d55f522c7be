"""Absent blocks: what a resized class must know of the attention and MLP blocks that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from passes.families import AttentionBlock, attention_blocks, family_of
from passes.graph import Kept, Kind, PruningGraph, Role, layer_path

ATTENTION, MLP, NORM = "attention", "mlp", "norm"
"""What a module of an absent block does; see ``compact_modeling.Absent``."""


def absent_modules(model: PreTrainedModel, graph: PruningGraph, kept: Kept) -> dict[str, str]:
    """The modules of removed blocks, outermost first, with what each does instead.

    A block is one module where it has one (``self_attn``, ``mlp``); where the layer itself holds an MLP's projections,
    the last one adds nothing and the others pass on what they get.
    """
    attention = {
        block.group_slices()[-1].parameter: block for block in attention_blocks(model, family_of(model.config))
    }
    found = {}
    for name, unit in sorted(graph.removed(kept)):
        owned = graph.by_name[name].owned[unit]
        if graph.by_name[name].kind is Kind.ATTENTION_BLOCKS:
            body, does = next(attention[each].path for each in owned if each in attention), ATTENTION
        else:
            body, does = _mlp_of(graph, (name, unit)), MLP
        found[body] = does
        modules = dict.fromkeys(each.rpartition(".")[0] for each in owned)
        found |= {path: NORM for path in modules if not f"{path}.".startswith(f"{body}.")}
    return found


def _mlp_of(graph: PruningGraph, unit: tuple[str, int]) -> str:
    """The module that holds all projections of an MLP; the last of them if that module is the layer itself."""
    inner = [graph.by_name[name] for name, owner in graph.inside.items() if owner == unit]
    paths = [part.module.split(".") for dimension in inner for part in dimension.slices]
    shared = [step[0] for step in zip(*paths, strict=False) if len(set(step)) == 1]
    body = ".".join(shared)
    if layer_path(body) != body:
        return body
    return next(part.module for dimension in inner for part in dimension.of_role(Role.CONSUME))


def with_absent(compact: dict[str, Any], model: PreTrainedModel, graph: PruningGraph, kept: Kept) -> dict[str, Any]:
    """The configuration's entry ``compact`` with the blocks that are gone.

    The attention blocks that are left take the places of the cache in order: its first place says how long it is.
    """
    modules = absent_modules(model, graph, kept)
    if not modules:
        return compact
    attributes = {path: dict(values) for path, values in compact["attributes"].items()}
    if ATTENTION in modules.values():
        left = present_attention(model, graph, kept)
        for place, block in enumerate(left):
            attributes.setdefault(block.path, {})["layer_idx"] = place
    return {**compact, "attributes": attributes, "absent": modules}


def present_attention(model: PreTrainedModel, graph: PruningGraph, kept: Kept) -> Sequence[AttentionBlock]:
    """The attention blocks that are left, in order."""
    gone = graph.gone(kept)
    blocks = attention_blocks(model, family_of(model.config))
    return [block for block in blocks if block.group_slices()[-1].parameter not in gone]
