"""Balance: how much of what goes is heads and how much is channels, by the loss under the masks of each way."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from passes.budget import Scores, Solver, best_units
from passes.criteria import AnyModel
from passes.graph import Masks
from passes.models import masked

logger = logging.getLogger(__name__)

ROWS = 32
"""Rows of the sample that the ways are measured on."""
WAYS = 8
"""At most so many ways are measured."""


@dataclass(frozen=True)
class Way:
    """A way to share what goes: how many units each width keeps, and the mean loss under its masks."""

    kept: Mapping[str, int]
    loss: float

    def __str__(self) -> str:
        return f"{', '.join(f'{count} {width}' for width, count in self.kept.items())}: {self.loss:.3f}"


def balanced(
    model: AnyModel,
    solver: Solver,
    choices: Sequence[Mapping[str, int]],
    scores: Scores,
    loss: Callable[[], float],
    tell: Callable[[], None],
) -> tuple[Masks, tuple[Way, ...]]:
    """The masks that meet the target and leave the least loss among the choices, and the ways as they were measured;
    without choices those of the solver, and nothing is measured.

    ``choices`` are kept units a width; ``loss`` is the model's, in nats, as it then is; ``tell`` is called after each.
    A loss that is no number loses; of two alike the first wins.
    """
    if not choices:
        return solver.masks(scores), ()
    graph, ways, found = solver.meter.graph, list[Way](), list[dict[str, torch.Tensor]]()
    for counts in choices:
        found.append(best_units(graph, scores, graph.uniform(counts)))
        with masked(model, graph, found[-1]):
            ways.append(Way(dict(counts), loss()))
        tell()
    best = min(range(len(ways)), key=lambda way: ways[way].loss if math.isfinite(ways[way].loss) else math.inf)
    logger.info("loss by what stays: %s; taken: %s", "; ".join(map(str, ways)), ways[best])
    return found[best], tuple(ways)
