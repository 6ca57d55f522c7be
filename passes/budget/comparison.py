"""Comparison: scores of different dimensions on one scale, so that their units can compete."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from passes.graph import Kind, PruningGraph
from passes.options import Comparison


def comparable(
    graph: PruningGraph, scores: Mapping[str, torch.Tensor], comparison: Comparison
) -> dict[str, torch.Tensor]:
    """The scores [units] a dimension, each multiplied by one factor a kind, or a dimension."""
    if comparison is Comparison.RAW:
        return dict(scores)
    groups: dict[Kind | str, list[str]] = {}
    for dimension in graph.dimensions:
        key = dimension.kind if comparison is Comparison.KIND else dimension.name
        groups.setdefault(key, []).append(dimension.name)
    factors: dict[str, float] = {}
    for names in groups.values():
        total = float(sum(scores[name].double().sum() for name in names))
        size = sum(graph.unit_parameters(graph.by_name[name]) * graph.by_name[name].size for name in names)
        factors |= dict.fromkeys(names, size / total if total > 0 else 1.0)
    return {name: score * factors[name] for name, score in scores.items()}
