"""Layers and blocks ranked by the rise of the loss when they are skipped, beside a criterion for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from peft import PeftModel

from passes.criteria.base import Criterion, Finite
from passes.criteria.skipped import skip_scores
from passes.graph import PruningGraph

Batches = Callable[[], Iterable[Mapping[str, torch.Tensor]]]
"""Makes the batches that the loss is measured on: keyword arguments of ``forward``, labels among them."""


class MeasuredDepth:
    """A criterion whose scores of layers and blocks are measured once, before anything is masked or trained."""

    def __init__(self, criterion: Criterion, graph: PruningGraph, batches: Batches) -> None:
        self._criterion, self._graph, self._batches = criterion, graph, batches
        self._measured: dict[str, torch.Tensor] = {}

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """The criterion's scores, and the measured ones in place of those of layers and blocks."""
        return {**self._criterion.scores, **self._measured}

    def begin(self, model: PeftModel) -> None:
        """Measure, unless that was done, then let the criterion prepare."""
        if not self._measured:
            self._measured = skip_scores(model, self._graph, self._batches())
        self._criterion.begin(model)

    def remember(self, scores: Mapping[str, torch.Tensor]) -> None:
        """Take the scores that a run before has measured."""
        self._measured = {d.name: scores[d.name] for d in self._graph.dimensions if d.kind.is_depth}

    def observe(self, model: PeftModel, loss_scale: float = 1.0) -> Finite:
        """Show the gradients to the criterion."""
        return self._criterion.observe(model, loss_scale)

    def end(self, model: PeftModel) -> None:
        """Let the criterion clean up."""
        self._criterion.end(model)
