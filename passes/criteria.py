"""Criteria: how units are ranked. Each gives scores [units] a dimension; the lowest go first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from peft import PeftModel
from torch import distributed, nn

from passes.adapter import ADAPTER, GRADIENT, lora_weights, projections, scored_by
from passes.errors import OptionError
from passes.graph import PruningGraph
from passes.importance import (
    DenseWeight,
    ImportanceOptions,
    MovingAverage,
    Weight,
    Window,
    importance,
    unit_scores,
)
from passes.models import parameter_at

CRITERIA = ("loraprune", "magnitude", "random")


class Criterion(Protocol):
    """Ranks units while the adapters train."""

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """The current scores [units], fp32 on the CPU, a dimension name. A checkpoint saves and restores them."""
        ...

    def begin(self, model: PeftModel) -> None:
        """Called before the first forward pass, once the optimizer has its parameters."""
        ...

    def observe(self, model: PeftModel, loss_scale: float = 1.0) -> bool:
        """Called after every backward pass, before clipping and before the optimizer's step.

        The gradients of the adapters are unscaled; those of all other parameters, which no gradient scaler knows,
        carry ``loss_scale``. Returns False if they were not finite, so that this step could not be taken in.
        """
        ...

    def end(self, model: PeftModel) -> None:
        """Called after training, also if it failed; may be called twice."""
        ...


class _Stateless:
    """A criterion that changes nothing in the model."""

    def begin(self, model: PeftModel) -> None:
        """Nothing to prepare."""

    def end(self, model: PeftModel) -> None:
        """Nothing to restore."""


class LoRAPrune:
    """The moving average of the LoRA-guided importance.

    A dimension that no adapter covers is scored by the true gradient of its weights. Between ``begin`` and ``end``
    those weights require gradients, which ``observe`` frees; since the optimizer was made before, it never moves them.
    """

    def __init__(self, graph: PruningGraph, options: ImportanceOptions) -> None:
        self._graph = graph
        self._options = options
        self._average = MovingAverage(graph, options.smoothing)
        self._bare: dict[str, nn.Parameter] = {}

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """The moving averages."""
        return self._average.scores

    def begin(self, model: PeftModel) -> None:
        """Ask for the gradients of the weights that no adapter stands for."""
        ways = scored_by(model, self._graph)
        bare = {name for d in self._graph.dimensions if ways[d.name] == GRADIENT for name in self._graph.scored(d)}
        self._bare = {name: parameter_at(model, name) for name in sorted(bare)}
        for parameter in self._bare.values():
            parameter.requires_grad_(True)

    def end(self, model: PeftModel) -> None:
        """Ask for them no longer."""
        for parameter in self._bare.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        self._bare = {}

    def observe(self, model: PeftModel, loss_scale: float = 1.0) -> bool:
        """Score this step's gradients and take them into the average."""
        ways = scored_by(model, self._graph)
        scores = self._score(dict(projections(model, self._graph)), [n for n, way in ways.items() if way == ADAPTER])
        bare = [name for name, way in ways.items() if way == GRADIENT]
        if bare:
            if not self._bare:
                raise RuntimeError(f"{bare[0]} wears no adapter: call begin() before the first forward pass")
            scores |= self._score(self._take_gradients(loss_scale), bare)
        if not all(torch.isfinite(score).all() for score in scores.values()):
            return False
        self._average.update(scores)
        return True

    def _score(self, weights: Mapping[str, Weight], dimensions: list[str]) -> dict[str, torch.Tensor]:
        def elements(weight: Weight, window: Window) -> torch.Tensor:
            return importance(weight, window, self._options)

        return unit_scores(
            self._graph, weights, elements, normalise=bool(self._options.normalise), dimensions=dimensions
        )

    def _take_gradients(self, loss_scale: float) -> dict[str, DenseWeight]:
        taken = {}
        for name, parameter in self._bare.items():
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                raise RuntimeError(f"{name} has no gradient: scores are read after the backward pass")
            taken[name] = DenseWeight(parameter, _mean_over_ranks(gradient).div_(loss_scale))
        return taken


def _mean_over_ranks(gradient: torch.Tensor) -> torch.Tensor:
    """The gradient that all ranks agree on. DDP sees to the adapters' only: it was set up before ``begin``."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(gradient)
        gradient /= distributed.get_world_size()
    return gradient


class Magnitude(_Stateless):
    """The squared L2 norm of a unit's weights W0 + sBA, as they are now."""

    def __init__(self, graph: PruningGraph) -> None:
        self._graph = graph
        self.scores = {dimension.name: torch.zeros(dimension.size) for dimension in graph.dimensions}

    @torch.no_grad()
    def observe(self, model: PeftModel, loss_scale: float = 1.0) -> bool:
        """Measure the merged weights, a projection at a time."""
        weights: dict[str, Weight] = {
            name: DenseWeight(parameter_at(model, name))
            for dimension in self._graph.dimensions
            for name in self._graph.scored(dimension)
        }
        weights.update(lora_weights(model))
        self.scores.update(unit_scores(self._graph, weights, lambda weight, window: weight.merged(window).square()))
        return True


class Random(_Stateless):
    """A fixed random order; the baseline that any criterion must beat."""

    def __init__(self, graph: PruningGraph, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.scores = {d.name: torch.rand(d.size, generator=generator) for d in graph.dimensions}

    def observe(self, model: PeftModel, loss_scale: float = 1.0) -> bool:
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
