"""Inspect: the dimensions of a model, their units, and what each unit costs. Needs only a ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpc.source import load_config
from passes.graph import Cost, Kind, PruningGraph
from passes.infra import plain
from passes.target import default_multiple, floor_ratio, reachable_channels
from passes.trace import trace


@dataclass(frozen=True)
class DimensionSummary:
    """The dimensions of one kind, which are alike in every layer; ``slices`` are those of the first one."""

    kind: Kind
    layers: int
    units: int
    unit_parameters: int
    share: float
    slices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What lpc sees in a model. ``share`` is a fraction of all parameters; ``largest_ratio`` is what can be removed."""

    model: str
    family: str
    layers: int
    head_dim: int
    query_heads_per_group: int
    cost: Cost
    multiple: int
    largest_ratio: float
    dimensions: tuple[DimensionSummary, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values: dict[str, Any] = plain(self)
        return values


def inspect(model: str | Path) -> Inspection:
    """Inspect a local folder (its ``config.json`` is enough) or a hub model; allocates no weights.

    Raises MissingFileError, ModelError, or UnsupportedModelError with the reason.
    """
    graph = trace(load_config(model))
    multiple = default_multiple(graph)
    smallest = graph.uniform(graph.group_counts[0], reachable_channels(graph, multiple)[0])
    dense = graph.parameters()
    return Inspection(
        model=str(model),
        family=graph.family,
        layers=graph.layers,
        head_dim=graph.head_dim,
        query_heads_per_group=graph.query_heads_per_group,
        cost=graph.cost(),
        multiple=multiple,
        largest_ratio=floor_ratio(1 - graph.parameters(smallest) / dense),
        dimensions=tuple(_summary(graph, kind, dense) for kind in Kind),
    )


def _summary(graph: PruningGraph, kind: Kind, dense: int) -> DimensionSummary:
    dimensions = graph.of_kind(kind)
    first = dimensions[0]
    unit = graph.unit_parameters(first)
    slices = tuple(f"{part.parameter} axis {part.axis} × {part.block}" for part in first.slices)
    return DimensionSummary(
        kind, len(dimensions), first.size, unit, unit * first.size * len(dimensions) / dense, slices
    )
