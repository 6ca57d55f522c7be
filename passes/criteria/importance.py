"""Importance of units from the gradients of A and B alone (LoRAPrune, arXiv 2305.18403).

With s = alpha/r, gA = dL/dA, gB = dL/dB and W = W0 + sBA, the score of a weight is

    I_ij = ((gB·A + B·gA − gB·gA) ⊙ W)²_ij        (eqs. 3, 6 and 10 of the paper; the authors' code takes abs instead)

and the score of a unit is the sum over all slices of the unit (eq. 4). Since peft multiplies B·A by s, the gradients
that reach A and B already carry s, and gB·A + B·gA = s(∇W·AᵀA + BBᵀ·∇W). Sum and moving average are both linear, so
smoothing unit scores equals smoothing weight scores and then summing: only O(units) state is kept.

A weight without an adapter is scored by its true gradient instead: I_ij = (∇W ⊙ W)²_ij (eq. 3 itself).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch

from passes.algebra import Way, low_rank_sums, stacked, windows
from passes.graph import PruningGraph, Slice, layerless
from passes.models import Projection, Weight, Window
from passes.options import ImportanceOptions

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
    return reduce(torch.add, blocks)


@torch.no_grad()
def axis_sums(weight: Weight, elements: Elements) -> AxisSums:
    """Score a weight, window by window, and sum."""
    stack = stacked(weight.weight)
    entries, height, width = stack.shape
    rows = torch.empty(entries, height, device=stack.device)
    columns = torch.zeros(entries, width, device=stack.device)
    for window in windows(stack.shape, stack.device):
        scores = elements(weight, window)
        rows[window] = scores.sum(2)
        columns[window[0]] += scores.sum(1)
    return AxisSums(rows, columns, stacked=weight.weight.dim() == 3)


def importance_sums(weight: Weight, options: ImportanceOptions, way: Way | None = None) -> AxisSums:
    """The sums of ``importance``; of a weight that wears LoRA without a matrix of its size, in the ``way`` given."""
    if not isinstance(weight, Projection):
        return axis_sums(weight, partial(importance, options=options))
    square = options.form == "square"
    rows, columns = low_rank_sums(weight, square=square, quadratic=options.quadratic, way=way)
    return AxisSums(rows, columns, stacked=weight.weight.dim() == 3)


def unit_scores(
    graph: PruningGraph,
    weights: Mapping[str, Weight],
    sums_of: Callable[[Weight], AxisSums],
    *,
    normalise: bool = False,
    dimensions: Collection[str] | None = None,
) -> dict[str, torch.Tensor]:
    """The scores [units] a dimension, fp32 where its first weight is, summed over its slices of the given weights.

    The score of a layer or block is the sum over the weights inside it. ``weights`` maps parameter names and
    ``sums_of`` scores one of them: each is looked at once, however many dimensions share it. ``normalise``: divide each
    slice's vector by its L2 norm before the sum; of layers and blocks, the vector of one projection's scores over all
    of them. ``dimensions``: names of those to score (None: all). Nothing waits for the device.
    """
    wanted = graph.by_name if dimensions is None else dimensions
    found: dict[str, list[torch.Tensor]] = {d.name: [] for d in graph.dimensions if d.name in wanted}
    whole: dict[tuple[str, str], list[tuple[int, torch.Tensor]]] = {}
    for parameter in dict.fromkeys((*graph.slices_of, *graph.whole_of)):
        parts = [(d, s) for d, s in graph.slices_of.get(parameter, ()) if s.is_weight and d.name in wanted]
        owner, unit = graph.whole_of.get(parameter, (None, 0))
        if parameter not in weights or not (parts or owner in found):
            continue
        sums = sums_of(weights[parameter])
        for dimension, part in parts:
            found[dimension.name].append(sums.per_unit(part, dimension.size))
        if owner is not None and owner in found:
            whole.setdefault((owner, layerless(parameter)), []).append((unit, sums.total))
    for (name, _), totals in whole.items():
        across = totals[0][1].new_zeros(graph.by_name[name].size)
        for unit, total in totals:
            across[unit] += total.to(across.device)
        found[name].append(across)
    return {name: torch.zeros(graph.by_name[name].size) for name in found} | _totals(found, normalise=normalise)


def _totals(found: Mapping[str, Sequence[torch.Tensor]], *, normalise: bool) -> dict[str, torch.Tensor]:
    """The sums of vectors [units], dimensions of one size with as many vectors together."""
    alike: dict[object, list[str]] = {}
    for name, vectors in found.items():
        if vectors:
            alike.setdefault((len(vectors), vectors[0].shape, vectors[0].device), []).append(name)
    totals: dict[str, torch.Tensor] = {}
    for names in alike.values():
        device = found[names[0]][0].device
        stack = torch.stack([each.to(device) for name in names for each in found[name]])
        stack = stack / (stack.norm(dim=1, keepdim=True) + 1e-12) if normalise else stack
        totals |= zip(names, stack.view(len(names), -1, stack.shape[1]).sum(1), strict=True)
    return totals


class MovingAverage:
    """Ī_t = λ Ī_{t−1} + (1 − λ) Î_t, a dimension; starts at zero, which does not matter for ranking.

    ``scores`` lie where the scores that are taken in do, those of one device in one piece.
    """

    def __init__(self, graph: PruningGraph, smoothing: float) -> None:
        self._smoothing = smoothing
        self._pieces: dict[torch.device, tuple[list[str], torch.Tensor]] = {}
        self.scores = {dimension.name: torch.zeros(dimension.size) for dimension in graph.dimensions}

    @torch.no_grad()
    def update(self, scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Take in one step's scores, unless one of them is not finite: whether they were, [] bool where they are.

        Nothing waits for the device to know.
        """
        devices = {name: scores[name].device for name in self.scores}
        if {name: score.device for name, score in self.scores.items()} != devices or not self._pieces:
            self._settle_on(devices)
        new = {device: torch.cat([scores[name] for name in names]) for device, (names, _) in self._pieces.items()}
        checks = [torch.isfinite(each).all() for each in new.values()]
        finite = torch.stack([check.to(checks[0].device) for check in checks]).all()
        for device, (_, piece) in self._pieces.items():
            mean = piece * self._smoothing + new[device] * (1 - self._smoothing)
            piece.copy_(torch.where(finite.to(device), mean, piece))
        return finite

    def _settle_on(self, devices: Mapping[str, torch.device]) -> None:
        """Move the averages to where the scores are."""
        together: dict[torch.device, list[str]] = {}
        for name, device in devices.items():
            together.setdefault(device, []).append(name)
        self._pieces = {}
        for device, names in together.items():
            piece = torch.cat([self.scores[name].to(device) for name in names])
            self._pieces[device] = names, piece
            self.scores.update(zip(names, torch.split(piece, [len(self.scores[name]) for name in names]), strict=True))
