"""The rise of the loss when a layer or block is skipped: what it is worth, measured instead of read off gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from passes.errors import DataError, UnsupportedModelError
from passes.graph import PruningGraph, full_masks
from passes.models import MaskedModel


@torch.no_grad()
def skip_scores(
    model: PreTrainedModel | PeftModel, graph: PruningGraph, batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The mean rise of the model's own loss with one unit skipped, at least 0: [units] a dimension of depth, fp32, CPU.

    ``batches`` are keyword arguments of ``forward``, labels among them. One forward pass a unit and a batch, and one
    more a batch, in evaluation mode; training mode is restored. An adapter that the model wears counts. Raises
    UnsupportedModelError if the graph was traced without depth, DataError if there is no batch or no loss.
    """
    if not graph.depth:
        raise UnsupportedModelError("there is no layer or block to skip: trace with TraceOptions(depth=...)")
    totals = {dimension.name: torch.zeros(dimension.size, dtype=torch.float64) for dimension in graph.depth}
    was_training, seen = model.training, 0
    hooks = MaskedModel(model.eval(), graph)
    try:
        for batch in batches:
            hooks.set(full_masks(graph))
            whole = _loss(model, batch)
            for name, total in totals.items():
                for unit in range(len(total)):
                    masks = full_masks(graph)
                    masks[name][unit] = False
                    hooks.set(masks)
                    total[unit] += _loss(model, batch) - whole
            seen += 1
    finally:
        hooks.remove()
        model.train(was_training)
    if not seen:
        raise DataError("there is no batch to measure the loss on")
    return {name: (total / seen).clamp_min(0).float() for name, total in totals.items()}


def _loss(model: PreTrainedModel | PeftModel, batch: Mapping[str, torch.Tensor]) -> float:
    inputs: dict[str, Any] = {name: value.to(model.device) for name, value in batch.items()}
    loss = model(**inputs).loss
    if loss is None:
        raise DataError(f"the model returns no loss for a batch of {', '.join(batch)}: it needs labels")
    return float(loss)
