"""Magnitude: the size of the weights alone."""

from __future__ import annotations

from functools import partial

import torch

from passes.criteria.base import AnyModel, Stateless, merged_weights, weight_names
from passes.criteria.importance import axis_sums, unit_scores
from passes.graph import PruningGraph
from passes.models import Weight, Window


class Magnitude(Stateless):
    """The squared L2 norm of a unit's weights W0 + sBA as they are now, or with ``l1`` their L1 norm.

    Han et al. 2015, arXiv 1506.02626 (weights); Li et al. 2017, arXiv 1608.08710, section 3.1 (L1 norms of whole
    filters). Nothing is averaged: weights are not noisy.
    """

    def __init__(self, graph: PruningGraph, *, l1: bool = False) -> None:
        self._graph, self._l1 = graph, l1
        self.scores = {dimension.name: torch.zeros(dimension.size) for dimension in graph.dimensions}

    @torch.no_grad()
    def observe(self, model: AnyModel, loss_scale: float = 1.0) -> bool:
        """Measure the merged weights, a projection at a time."""

        def elements(weight: Weight, window: Window) -> torch.Tensor:
            merged = weight.merged(window)
            return merged.abs() if self._l1 else merged.square()

        weights = merged_weights(model, weight_names(self._graph))
        self.scores.update(unit_scores(self._graph, weights, partial(axis_sums, elements=elements)))
        return True
