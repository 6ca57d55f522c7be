"""LoRAPrune: importance from the gradients of A and B alone (Zhang et al. 2023, arXiv 2305.18403, eqs. 3 to 11)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from peft import PeftModel

from passes.algebra import Way
from passes.criteria.base import Averaged, Finite
from passes.criteria.gradients import TrueGradients
from passes.criteria.importance import importance_sums, unit_scores
from passes.graph import PruningGraph
from passes.models import (
    ADAPTER,
    GRADIENT,
    DenseWeight,
    LoraLayers,
    Weight,
    lora_layers,
    parameter_at,
    projections,
    scored_by,
)
from passes.options import ImportanceOptions

AUTHORS_CODE = {"form": "abs", "normalise": True, "quadratic": True}
"""``ImportanceOptions`` of the authors' code (compute_sensitivity in loraprune/utils.py), which also lets no masked
unit come back."""


class LoRAPrune(Averaged):
    """The moving average of the LoRA-guided importance, Σ ((gB·A + B·gA − gB·gA) ⊙ W)² over a unit's weights.

    A dimension that no adapter covers is scored by the true gradient of its weights. Between ``begin`` and ``end``
    those weights require gradients, which ``observe`` frees. ``way``: how sums are formed (None: the fastest there is).
    """

    def __init__(self, graph: PruningGraph, options: ImportanceOptions, way: Way | None = None) -> None:
        super().__init__(graph, options.smoothing)
        self._options, self._way = options, way
        self._bare = TrueGradients()
        self._layers: LoraLayers | None = None

    def begin(self, model: PeftModel) -> None:
        """Ask for the gradients of the weights that no adapter stands for."""
        ways = scored_by(model, self._graph)
        bare = {name for d in self._graph.dimensions if ways[d.name] == GRADIENT for name in self._graph.scored(d)}
        self._bare.begin(model, sorted(bare))

    def end(self, model: PeftModel) -> None:
        """Ask for them no longer."""
        self._bare.end()
        self._layers = None

    def observe(self, model: PeftModel, loss_scale: float = 1.0) -> Finite:
        """Score this step's gradients and take them into the average."""
        self._layers = self._layers or lora_layers(model)
        ways = scored_by(model, self._graph, self._layers)
        worn = dict(projections(model, self._graph, self._layers))
        scores = self._score(worn, [name for name, way in ways.items() if way == ADAPTER])
        bare = [name for name, way in ways.items() if way == GRADIENT]
        if bare:
            if not self._bare.parameters:
                raise RuntimeError(f"{bare[0]} wears no adapter: call begin() before the first forward pass")
            taken = self._bare.take(loss_scale).items()
            scores |= self._score({name: DenseWeight(parameter_at(model, name), grad) for name, grad in taken}, bare)
        return self._take_in(scores)

    def _score(self, weights: Mapping[str, Weight], dimensions: list[str]) -> dict[str, torch.Tensor]:
        sums_of = partial(importance_sums, options=self._options, way=self._way)
        normalise = bool(self._options.normalise)
        return unit_scores(self._graph, weights, sums_of, normalise=normalise, dimensions=dimensions)
