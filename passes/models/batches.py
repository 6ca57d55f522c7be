"""Calibration data: which rows are scored where nothing is trained, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

from passes.models.tasks import Task

Row = dict[str, torch.Tensor]

Collate = Callable[[list[Row]], Row]
"""Makes one batch of items."""


HOST_TOKENS = 768
"""So many tokens are looked at at a time on a processor, where that is as fast as more and takes less memory."""


def sample_rows(count: int, samples: int, seed: int) -> tuple[int, ...]:
    """Which of ``count`` rows to take, ``samples`` of them or all if there are fewer: ascending, none twice.

    A random choice that the seed fixes, the same on every machine; torch's global generator is left alone.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return tuple(sorted(order[:samples].tolist()))


def batches(
    data: Dataset[Row], rows: Sequence[int], batch_size: int, collate: Collate | None, device: torch.device
) -> Iterator[Row]:
    """Batches of the rows, in order, on a device; the last may be smaller. ``collate`` None: stack."""
    make: Callable[[Any], Any] = collate or default_collate
    for start in range(0, len(rows), batch_size):
        batch = make([data[row] for row in rows[start : start + batch_size]])
        yield {name: value.to(device) for name, value in batch.items()}


def pieces(batch: Row, task: Task, tokens: int) -> list[Row]:
    """The batch in pieces of whole rows of at most ``tokens`` tokens, or one row; whole if one would have no label.

    Whole too where the loss is of pairs of rows, as that of embedding models is.
    """
    if task is Task.FEATURE_EXTRACTION:
        return [batch]
    first = next(iter(batch.values()))
    rows = max(1, tokens // max(1, first[0].numel()))
    if any(len(value) != len(first) for value in batch.values()) or first.is_floating_point():
        return [batch]
    split = {name: torch.split(value, rows) for name, value in batch.items()}
    found = [dict(zip(split, part, strict=True)) for part in zip(*split.values(), strict=True)]
    return found if all(label_count(task, part) for part in found) else [batch]


def label_count(task: Task, batch: Mapping[str, Any]) -> int:
    """How many labels the model's loss on a batch is the mean over: labelled tokens, or rows."""
    labels = batch.get("labels")
    if labels is None or labels.dim() < 2 or labels.is_floating_point():
        return len(next(iter(batch.values())))
    return int((labels[:, 1:] if task is Task.CAUSAL_LM else labels).ne(-100).sum())
