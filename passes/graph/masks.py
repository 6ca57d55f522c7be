"""Masks: which units a forward pass lets through."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from passes.graph.graph import PruningGraph

Masks = Mapping[str, torch.Tensor]
"""A boolean tensor [units] a dimension name; True lets the unit through."""


def full_masks(graph: PruningGraph) -> dict[str, torch.Tensor]:
    """Masks that let everything through."""
    return {dimension.name: torch.ones(dimension.size, dtype=torch.bool) for dimension in graph.dimensions}
