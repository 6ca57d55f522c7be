"""The guard: whether the model's own loss on the calibration data has fallen, on as many batches as that takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import mean, stdev
from typing import Any

from passes.compensation.streams import ModelInputs, Sides
from passes.models import base_model, label_count, lean_loss, replaced, task_of
from passes.ranks import Share

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


def compared(sides: Sides, share: Share[ModelInputs], outputs: Iterable[Mapping[str, Any]]) -> Compared:
    """The model's own loss with its original weights and as it is now, under the masks, on the same batches.

    ``outputs`` are what it gives now, a batch of this rank's each; no more of them are taken than it needs.
    """
    losses: list[tuple[float, float, int]] = []
    rows = 0
    with lean_loss(sides.model):
        for found in share.told(_losses(sides, share.mine, outputs)):
            *loss, count, batch_rows = found
            rows += batch_rows
            if count:
                losses.append((loss[0], loss[1], count))
            if _clear([after - before for before, after, _ in losses]):
                break
    labels = max(1, sum(count for _, _, count in losses))
    before, after = (sum(loss[side] * loss[2] for loss in losses) / labels for side in (0, 1))
    return Compared(before, after, rows)


def _losses(
    sides: Sides, batches: Sequence[ModelInputs], outputs: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[float, float, int, int]]:
    """Of each batch the losses before and after, how many labels they are the mean over, and how many rows it has."""
    task = task_of(base_model(sides.model))
    # of what the model gives, the loss alone: whole logits would lie beside those of the next run
    for batch, loss in zip(batches, map(itemgetter("loss"), outputs), strict=False):
        count, before, after = label_count(task, batch), 0.0, 0.0
        if count:
            with replaced(sides.model, sides.originals):
                before = float(sides.model(**batch)["loss"])
            after = float(loss)
        yield before, after, count, len(next(iter(batch.values())))


def _clear(differences: Sequence[float]) -> bool:
    """Whether more batches would not change the sign of the mean difference."""
    if len(differences) < LEAST_BATCHES:
        return False
    return bool(abs(mean(differences)) > CLEAR * stdev(differences) / len(differences) ** 0.5)
