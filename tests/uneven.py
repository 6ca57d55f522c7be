"""Models of the zoo that have lost other numbers of units in each layer."""

from __future__ import annotations

import torch
import zoo
from transformers import PreTrainedModel

from passes.graph import PruningGraph
from passes.options import TraceOptions
from passes.shrink import build_compact
from passes.trace import trace


def uneven_units(graph: PruningGraph, seed: int = 0) -> dict[str, tuple[int, ...]]:
    """Random units: of every width about half of the allowed counts in layer 0, more in each further layer."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for dimension in graph.dimensions:
        counts = graph.width(dimension.width).counts
        chosen = counts[(len(counts) // 2 + dimension.layer * max(1, len(counts) // 3)) % len(counts)]
        units = torch.randperm(dimension.size, generator=generator)[:chosen]
        kept[dimension.name] = tuple(sorted(units.tolist()))
    return kept


def uneven(name: str, *, custom_code: bool = False, **changes: object) -> PreTrainedModel:
    """The compact model of a case of the zoo, every layer with sizes of its own."""
    model = zoo.build(name, **changes)
    graph = trace(model.config, model_type=type(model), options=TraceOptions(custom_code=custom_code))
    return build_compact(model, graph, uneven_units(graph))
