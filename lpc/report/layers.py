"""What stays of each dimension, and how important its units were: the numbers behind the report's pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from passes.graph import Dimension, Plan, PruningGraph

DECILES = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass(frozen=True, kw_only=True)
class DimensionKept:
    """How many units of a dimension stay, and how important its units were ranked, if they were.

    ``layer`` is -1 for what all layers share. ``importance`` are the scores' deciles, least to greatest (11 numbers);
    ``cut`` the greatest score among the units that went, None if none went.
    """

    name: str
    width: str
    layer: int
    dense: int
    kept: int
    importance: tuple[float, ...] | None = None
    cut: float | None = None


def dimensions_kept(
    graph: PruningGraph, plan: Plan, scores: Mapping[str, torch.Tensor] | None
) -> Iterator[DimensionKept]:
    """One for each dimension of the graph, in its order. ``scores`` are [units] by dimension."""
    counts = plan.counts()
    for each in graph.dimensions:
        if each.kind.is_depth:
            continue
        score = scores.get(each.name) if scores else None
        yield DimensionKept(
            name=each.name,
            width=each.width,
            layer=each.layer,
            dense=each.size,
            kept=counts.get(each.name, each.size),
            importance=_deciles(score),
            cut=_cut(each, plan, score),
        )


def _deciles(score: torch.Tensor | None) -> tuple[float, ...] | None:
    if score is None or not score.isfinite().all():
        return None
    found = torch.quantile(score.double().cpu(), torch.tensor(DECILES, dtype=torch.float64))
    return tuple(found.tolist())


def _cut(dimension: Dimension, plan: Plan, score: torch.Tensor | None) -> float | None:
    kept = plan.kept.get(dimension.name)
    if score is None or kept is None:
        return None
    gone = torch.ones(dimension.size, dtype=torch.bool)
    gone[list(kept)] = False
    return float(score.cpu()[gone].max()) if gone.any() else None
