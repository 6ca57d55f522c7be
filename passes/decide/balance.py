"""Balance: how much of what goes is heads and how much is channels, by the loss under the masks of each way."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
class BalanceTried:
    """A way to share what goes: units that each width keeps, and the mean loss under its masks if it is a number."""

    kept: Mapping[str, int]
    loss: float | None

    def __str__(self) -> str:
        loss = "no number" if self.loss is None else f"{self.loss:.3f}"
        return f"{', '.join(f'{count:,} {width}' for width, count in self.kept.items())}: loss {loss}"


def balanced(
    model: AnyModel,
    solver: Solver,
    choices: Sequence[Mapping[str, int]],
    scores: Scores,
    loss: Callable[[], float],
    tell: Callable[[], None],
) -> tuple[Masks, tuple[BalanceTried, ...]]:
    """The masks that meet the target and leave the least loss among the choices, and the ways as they were measured,
    the best first; without choices those of the solver, and nothing is measured.

    ``choices`` are kept units a width; ``loss`` is the model's, in nats, as it then is; ``tell`` is called after each.
    A loss that is no number loses; of two alike the first wins.
    """
    if not choices:
        return solver.masks(scores), ()
    graph, found = solver.meter.graph, list[tuple[float, BalanceTried, Masks]]()
    for counts in choices:
        masks = best_units(graph, scores, graph.uniform(counts))
        with masked(model, graph, masks):
            value = loss()
        known = math.isfinite(value)
        found.append((value if known else math.inf, BalanceTried(dict(counts), value if known else None), masks))
        tell()
    found.sort(key=lambda each: each[0])
    ways = tuple(way for _, way, _ in found)
    logger.info("what stays, and the loss under its masks: %s", "; ".join(map(str, ways)))
    return found[0][2], ways
