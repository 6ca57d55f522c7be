"""Importance of units from the gradients of A and B alone (LoRAPrune, arXiv 2305.18403).

With s = alpha/r, gA = dL/dA, gB = dL/dB and W = W0 + sBA, the score of a weight is

    I_ij = ((gB·A + B·gA − gB·gA) ⊙ W)²_ij        (eqs. 3, 6 and 10 of the paper; the authors' code takes abs instead)

and the score of a unit is the sum over all slices of the unit (eq. 4). Since peft multiplies B·A by s, the gradients
that reach A and B already carry s, and gB·A + B·gA = s(∇W·AᵀA + BBᵀ·∇W). Sum and moving average are both linear, so
smoothing unit scores equals smoothing weight scores and then summing: only O(units) state is kept.

A weight without an adapter is scored by its true gradient instead: I_ij = (∇W ⊙ W)²_ij (eq. 3 itself).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

from passes.algebra import on_cpu
from passes.graph import PruningGraph, Slice, layerless
from passes.models import Weight, Window, stacked
from passes.options import ImportanceOptions

BLOCK_ELEMENTS = 1 << 22
"""Elements of a weight that are scored at a time, so that no out×in matrix of a large model exists."""

Elements = Callable[[Weight, Window], torch.Tensor]
"""The scores of the elements of a weight in a window, [entries, rows, columns]."""


def importance(weight: Weight, window: Window, options: ImportanceOptions) -> torch.Tensor:
    """The scores of the weights in a window, [entries, rows, columns], fp32."""
    scores = weight.gradient(window, quadratic=options.quadratic) * weight.merged(window)
    return scores.square_() if options.form == "square" else scores.abs_()


@dataclass(frozen=True)
class AxisSums:
    """Element scores of one weight summed over all axes but one, and within each entry; fp32 where the weight is.

    ``rows`` is [entries, rows] and ``columns`` [entries, columns].
    """

    rows: torch.Tensor
    columns: torch.Tensor
    stacked: bool

    @property
    def total(self) -> torch.Tensor:
        """The sum over all elements, []."""
        return self.rows.sum()

    def per_unit(self, part: Slice, units: int) -> torch.Tensor:
        """The sums [units] over what each unit owns of the weight; indices that no unit owns are left out."""
        axis = part.axis if self.stacked else part.axis + 1
        if axis == 0:
            along = self.rows.sum(1)
        else:
            table = self.rows if axis == 1 else self.columns
            along = table.sum(0) if part.at is None else table[part.at]
        return unit_sums(along, part, units)


def unit_sums(along: torch.Tensor, part: Slice, units: int) -> torch.Tensor:
    """What each unit owns of values [..., length] along the axis of a slice, summed: [..., units]."""
    blocks = [
        along[..., start : start + units * width].reshape(*along.shape[:-1], units, width).sum(-1)
        for start, width in part.segments
    ]
    return torch.stack(blocks).sum(0)


@torch.no_grad()
def axis_sums(weight: Weight, elements: Elements) -> AxisSums:
    """Score a weight, window by window, and sum."""
    stack = stacked(weight.weight)
    entries, height, width = stack.shape
    rows = torch.zeros(entries, height, device=stack.device)
    columns = torch.zeros(entries, width, device=stack.device)
    tall = max(1, min(height, BLOCK_ELEMENTS // width))
    deep = max(1, BLOCK_ELEMENTS // (width * tall))
    for first in range(0, entries, deep):
        for top in range(0, height, tall):
            window = slice(first, min(first + deep, entries)), slice(top, min(top + tall, height))
            scores = elements(weight, window)
            rows[window] = scores.sum(2)
            columns[window[0]] += scores.sum(1)
    return AxisSums(rows, columns, stacked=weight.weight.dim() == 3)


def unit_scores(
    graph: PruningGraph,
    weights: Mapping[str, Weight],
    elements: Elements,
    *,
    normalise: bool = False,
    dimensions: Collection[str] | None = None,
) -> dict[str, torch.Tensor]:
    """The scores [units] a dimension, fp32 on the CPU, summed over its slices of the given weights.

    The score of a layer or block is the sum over the weights inside it. ``weights`` maps parameter names and
    ``elements`` scores a window of one of them: each window is looked at once, however many dimensions share the
    weight. ``normalise``: divide each slice's vector by its L2 norm before the sum; of layers and blocks, the vector of
    one projection's scores over all of them. ``dimensions``: names of those to score (None: all).
    """
    wanted = graph.by_name if dimensions is None else dimensions
    totals = {d.name: torch.zeros(d.size) for d in graph.dimensions if d.name in wanted}
    whole: dict[tuple[str, str], torch.Tensor] = {}
    for parameter in dict.fromkeys((*graph.slices_of, *graph.whole_of)):
        parts = [(d, s) for d, s in graph.slices_of.get(parameter, ()) if s.is_weight and d.name in wanted]
        owner, unit = graph.whole_of.get(parameter, (None, 0))
        if parameter not in weights or not (parts or owner in totals):
            continue
        sums = axis_sums(weights[parameter], elements)
        for dimension, part in parts:
            _add(totals, dimension.name, sums.per_unit(part, dimension.size), normalise=normalise)
        if owner is not None and owner in totals:
            across = whole.setdefault((owner, layerless(parameter)), sums.rows.new_zeros(totals[owner].shape))
            across[unit] += sums.total.to(across.device)
    for (name, _), scores in whole.items():
        _add(totals, name, scores, normalise=normalise)
    return on_cpu(totals)


def _add(totals: dict[str, torch.Tensor], name: str, scores: torch.Tensor, *, normalise: bool) -> None:
    """Add scores to a total, which goes to where they are; nothing waits for the device."""
    scores = scores / (scores.norm() + 1e-12) if normalise else scores
    totals[name] = totals[name].to(scores.device, non_blocking=True) + scores


class MovingAverage:
    """Ī_t = λ Ī_{t−1} + (1 − λ) Î_t, a dimension; starts at zero, which does not matter for ranking."""

    def __init__(self, graph: PruningGraph, smoothing: float) -> None:
        self._smoothing = smoothing
        self.scores = {dimension.name: torch.zeros(dimension.size) for dimension in graph.dimensions}

    def update(self, scores: Mapping[str, torch.Tensor]) -> None:
        """Take in one step's scores."""
        for name, average in self.scores.items():
            average.mul_(self._smoothing).add_(scores[name], alpha=1 - self._smoothing)
