"""What the tests of depth share: tiny decoders of four layers, choices of units, and skipping written out by hand."""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import torch
import zoo
from torch import nn
from transformers import PreTrainedModel

from passes.graph import PruningGraph
from passes.options import TraceOptions
from passes.trace import trace

Kept = Mapping[str, Sequence[int]]
LAYERS = 4
EVERY_LAYER = ("layer_types", "no_rope_layers")
DECODERS = [name for name, case in zoo.ZOO.items() if case.family in zoo.DECODERS and name not in ("opt-post-norm",)]


@lru_cache
def deep(name: str) -> PreTrainedModel:
    """A decoder of the zoo with four layers, which no test may change."""
    config = zoo.ZOO[name].config()
    changes: dict[str, object] = {config.attribute_map.get("num_hidden_layers", "num_hidden_layers"): LAYERS}
    changes |= {entry: getattr(config, entry) * 2 for entry in EVERY_LAYER if getattr(config, entry, None)}
    return zoo.build(name, **changes)


@lru_cache
def deep_graph(name: str, depth: str, *, custom_code: bool = False, query_heads: bool = False) -> PruningGraph:
    options = TraceOptions(depth=depth, custom_code=custom_code, query_heads=query_heads)
    return trace(deep(name).config, torch.float32, model_type=type(deep(name)), options=options)


def without(graph: PruningGraph, *gone: tuple[str, int]) -> dict[str, tuple[int, ...]]:
    """All units but these layers or blocks, and what lies in them."""
    kept = {d.name: tuple(u for u in range(d.size) if (d.name, u) not in gone) for d in graph.dimensions}
    return {name: tuple(units) for name, units in graph.complete(kept).items()}


def random_choice(graph: PruningGraph, seed: int) -> dict[str, tuple[int, ...]]:
    """Some layers or blocks, and of every width some count of random units."""
    generator = random.Random(seed)
    counts = {width.name: generator.choice(width.counts) for width in graph.widths}
    sizes = {d.name: generator.randint(1, d.size - 1) if d.kind.is_depth else counts[d.width] for d in graph.dimensions}
    kept = {d.name: tuple(sorted(generator.sample(range(d.size), sizes[d.name]))) for d in graph.dimensions}
    return {name: tuple(units) for name, units in graph.complete(kept).items()}


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == LAYERS)


@torch.no_grad()
def muted(model: PreTrainedModel, outputs: Collection[str]) -> PreTrainedModel:
    """A copy in which these linear layers return zeros: their weights and biases are zero."""
    copied = copy.deepcopy(model)
    for name in outputs:
        for parameter in copied.get_submodule(name).parameters():
            parameter.zero_()
    return copied
