"""Random: the baseline that any criterion must beat."""

from __future__ import annotations

import torch

from passes.criteria.base import AnyModel, Stateless
from passes.graph import PruningGraph


class Random(Stateless):
    """A fixed random order, uniform in [0, 1)."""

    def __init__(self, graph: PruningGraph, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.scores = {d.name: torch.rand(d.size, generator=generator) for d in graph.dimensions}

    def observe(self, model: AnyModel, loss_scale: float = 1.0) -> bool:
        """Nothing to see."""
        return True
