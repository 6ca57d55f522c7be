"""Criteria: how units are ranked. Each gives scores [units] a dimension; the lowest go first."""

from __future__ import annotations

from typing import Protocol

import torch
from peft import PeftModel

from passes.adapter import active_adapter, lora_layers, projections
from passes.errors import OptionError
from passes.graph import PruningGraph
from passes.importance import ImportanceOptions, MovingAverage, unit_scores

CRITERIA = ("loraprune", "magnitude", "random")


class Criterion(Protocol):
    """Ranks units while the adapters train."""

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """The current scores [units], fp32 on the CPU, a dimension name. A checkpoint saves and restores them."""
        ...

    def observe(self, model: PeftModel) -> bool:
        """Called after every backward pass, before the optimizer's step, with unscaled and unclipped gradients.

        Returns False if the gradients were not finite, so that this step could not be taken in.
        """
        ...


class LoRAPrune:
    """The moving average of the LoRA-guided importance."""

    def __init__(self, graph: PruningGraph, options: ImportanceOptions) -> None:
        self._graph = graph
        self._options = options
        self._average = MovingAverage(graph, options.smoothing)

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """The moving averages."""
        return self._average.scores

    def observe(self, model: PeftModel) -> bool:
        """Score this step's gradients and take them into the average."""
        wrapped = dict(projections(model, self._graph))
        scores = {d.name: unit_scores(d, wrapped, self._options) for d in self._graph.dimensions}
        if not all(torch.isfinite(score).all() for score in scores.values()):
            return False
        self._average.update(scores)
        return True


class Magnitude:
    """The squared L2 norm of a unit's weights W0 + sBA, as they are now."""

    def __init__(self, graph: PruningGraph) -> None:
        self._graph = graph
        self.scores = {dimension.name: torch.zeros(dimension.size) for dimension in graph.dimensions}

    @torch.no_grad()
    def observe(self, model: PeftModel) -> bool:
        """Measure the merged weights, a projection at a time."""
        adapter, layers = active_adapter(model), lora_layers(model)
        totals = {dimension.name: torch.zeros(dimension.size) for dimension in self._graph.dimensions}
        for dimension in self._graph.dimensions:
            for part in dimension.weights:
                if part.module in layers:
                    layer = layers[part.module]
                    weight = layer.get_base_layer().weight.float() + layer.get_delta_weight(adapter).float()
                    totals[dimension.name] += weight.square().sum(1 - part.axis).view(-1, part.block).sum(1).cpu()
        self.scores.update(totals)
        return True


class Random:
    """A fixed random order; the baseline that any criterion must beat."""

    def __init__(self, graph: PruningGraph, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.scores = {d.name: torch.rand(d.size, generator=generator) for d in graph.dimensions}

    def observe(self, model: PeftModel) -> bool:
        """Nothing to see."""
        return True


def make_criterion(name: str, graph: PruningGraph, importance: ImportanceOptions, seed: int) -> Criterion:
    """The criterion of that name. Raises OptionError for an unknown one."""
    match name:
        case "loraprune":
            return LoRAPrune(graph, importance)
        case "magnitude":
            return Magnitude(graph)
        case "random":
            return Random(graph, seed)
    raise OptionError(f"unknown criterion {name!r}: choose one of {', '.join(CRITERIA)}")
