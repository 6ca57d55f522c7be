"""The loss of a causal language model in chunks of rows: without a second, fp32 copy of its logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import pad
from transformers import PreTrainedModel

from passes.models import vendor
from passes.models.base import base_model
from passes.models.tasks import Task, task_of

CHUNK_ELEMENTS = 1 << 22
"""Logits that are looked at in fp32 at a time."""

IGNORED = -100


@contextmanager
def lean_loss(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """The model computes its loss in chunks, inside the block, where it is transformers' own for causal models.

    The same number and the same gradients to rounding. Of [tokens, words] there are then the logits as the model gives
    them and, for their gradient, as much once more.
    """
    base = base_model(model)
    # transformers has no loss for a model without a head, and warns where it is asked for one
    was: Any = None if task_of(base) is Task.FEATURE_EXTRACTION else base.loss_function
    if was is not vendor.loss_named("ForCausalLM"):
        yield
        return
    base.loss_function = causal_loss
    try:
        yield
    finally:
        base.loss_function = was


def causal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    vocab_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = IGNORED,
    shift_labels: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """``ForCausalLMLoss``: the mean cross-entropy of the next tokens [rows, tokens], or its sum over
    ``num_items_in_batch``.
    """
    if shift_labels is None:
        assert labels is not None
        shift_labels = pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1).to(logits.device)
    targets = targets.masked_fill(targets == ignore_index, IGNORED)
    total: torch.Tensor = _CrossEntropy.apply(logits.reshape(-1, vocab_size), targets)  # type: ignore[no-untyped-call]
    count = (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if isinstance(count, torch.Tensor) else count)


class _CrossEntropy(torch.autograd.Function):
    """Σ over the rows that count of log Σ exp(logits) − logits[target]; fp32."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows = max(1, CHUNK_ELEMENTS // logits.shape[1])
        sums = torch.cat([part.float().logsumexp(1) for part in torch.split(logits, rows)])
        chosen = logits.gather(1, targets.clamp_min(0)[:, None])[:, 0].float()
        ctx.save_for_backward(logits, targets, sums)
        ctx.rows = rows
        return (sums - chosen).masked_fill(targets == IGNORED, 0).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets, sums = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        counts = (targets != IGNORED).float() * gradients[0].float()
        parts = (torch.split(tensor, ctx.rows) for tensor in (logits, targets, sums, counts, gradient))
        for part, target, total, count, found in zip(*parts, strict=True):
            softmax = (part.float() - total[:, None]).exp_()
            softmax.scatter_add_(1, target.clamp_min(0)[:, None], softmax.new_full((len(target), 1), -1.0))
            found.copy_(softmax.mul_(count[:, None]))
        return gradient, None
