"""The model's own loss on held-out data, with which training is stopped and its best state chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import PreTrainedModel, default_data_collator

from passes.errors import DataError
from passes.models.base import base_model, evaluation_mode
from passes.models.batches import label_count
from passes.models.head import TokenHead, label_losses
from passes.models.lean_loss import lean_loss
from passes.models.tasks import task_of


@torch.no_grad()
def heldout_loss(
    model: PreTrainedModel | PeftModel,
    data: Dataset[dict[str, torch.Tensor]],
    batch_size: int,
    collate: Callable[[list[dict[str, torch.Tensor]]], dict[str, torch.Tensor]] | None = None,
) -> float:
    """The mean of the model's own loss over all labels (rows, where a row has one). Without dropout.

    The model comes back with the training flags it had. Raises DataError if there is no data.
    """
    count, task = len(data), task_of(base_model(model))  # type: ignore[arg-type]
    if not count:
        raise DataError("there is no held-out data to choose the best state by")
    device = next(model.parameters()).device
    total, labels = 0.0, 0
    head = TokenHead.of(model)
    with evaluation_mode(model), lean_loss(model):
        for start in range(0, count, batch_size):
            items = [data[index] for index in range(start, min(start + batch_size, count))]
            batch = {name: value.to(device) for name, value in (collate or default_data_collator)(items).items()}
            weight = label_count(task, batch)
            if weight and head is not None:
                total += float(label_losses(model, batch, batch.pop("labels"), head)[0].cpu().double().sum())
            elif weight:
                total += float(model(**batch)["loss"]) * weight
            labels += weight
    return total / max(labels, 1)
