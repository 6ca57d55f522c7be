"""The guard: whether the model's own loss on the calibration data has fallen, on as many batches as that takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from passes.compensation.streams import ModelInputs, Sides
from passes.models import base_model, label_count, lean_loss, replaced, task_of

LEAST_BATCHES = 4
CLEAR = 6.0
"""The mean difference a batch, in units of its standard error, from which no more batches are looked at: with four
batches one chance in a hundred (Student's t, two-sided), with more far less."""


@dataclass(frozen=True)
class Compared:
    """The mean loss over all labels of so many rows, before and after."""

    before: float
    after: float
    rows: int


def compared(sides: Sides, batches: Sequence[ModelInputs], outputs: Iterable[Mapping[str, Any]]) -> Compared:
    """The model's own loss with its original weights and as it is now, under the masks, on the same batches.

    ``outputs`` are what it gives now, a batch each; no more of them are taken than it needs.
    """
    task = task_of(base_model(sides.model))
    losses: list[tuple[float, float, int]] = []
    rows = 0
    with lean_loss(sides.model):
        for batch, output in zip(batches, outputs, strict=False):
            count = label_count(task, batch)
            rows += len(next(iter(batch.values())))
            if count:
                with replaced(sides.model, sides.originals):
                    before = float(sides.model(**batch)["loss"])
                losses.append((before, float(output["loss"]), count))
            if _clear([after - before for before, after, _ in losses]):
                break
    labels = max(1, sum(count for _, _, count in losses))
    before, after = (sum(loss[side] * loss[2] for loss in losses) / labels for side in (0, 1))
    return Compared(before, after, rows)


def _clear(differences: Sequence[float]) -> bool:
    """Whether more batches would not change the sign of the mean difference."""
    if len(differences) < LEAST_BATCHES:
        return False
    return bool(abs(mean(differences)) > CLEAR * stdev(differences) / len(differences) ** 0.5)
