"""Importance of units from the gradients of A and B alone (LoRAPrune, arXiv 2305.18403).

With s = alpha/r, gA = dL/dA, gB = dL/dB and W = W0 + sBA, the score of a weight is

    I_ij = ((gB·A + B·gA − gB·gA) ⊙ W)²_ij        (eqs. 3, 6 and 10 of the paper; the authors' code takes abs instead)

and the score of a unit is the sum over all slices of the unit (eq. 4). Since peft multiplies B·A by s, the gradients
that reach A and B already carry s, and gB·A + B·gA = s(∇W·AᵀA + BBᵀ·∇W). Sum and moving average are both linear, so
smoothing unit scores equals smoothing weight scores and then summing: only O(units) state is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from passes.errors import OptionError
from passes.graph import Dimension, PruningGraph, Slice

ROW_BLOCK_ELEMENTS = 1 << 22
"""Elements of a weight that are scored at a time, so that no out×in matrix of a large model exists."""

FORMS = ("square", "abs")


@dataclass(frozen=True, kw_only=True)
class ImportanceOptions:
    """How weights become unit scores.

    ``form``: ``square`` is the paper's, ``abs`` the authors' code's. ``normalise``: divide each projection's vector of
    unit scores by its L2 norm before the sum, as the authors' code does. ``quadratic``: keep the term −gB·gA, which
    both have; it carries the learning rate and so depends on the loss scale. ``smoothing``: λ of the moving average.
    """

    form: str = "square"
    normalise: bool = True
    quadratic: bool = False
    smoothing: float = 0.9

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise OptionError(f"importance form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if not 0 <= self.smoothing < 1:
            raise OptionError(f"smoothing (λ) must be at least 0 and below 1, got {self.smoothing}")


@dataclass(frozen=True)
class Projection:
    """A LoRA-wrapped projection after a backward pass.

    ``weight`` is W0 [out, in], ``a`` [r, in], ``b`` [out, r], ``grad_a`` and ``grad_b`` their unscaled gradients.
    """

    weight: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor
    scaling: float


@torch.no_grad()
def axis_scores(projection: Projection, axis: int, options: ImportanceOptions) -> torch.Tensor:
    """Weight scores summed over the other axis: [out] for axis 0, [in] for axis 1; fp32."""
    out_features, in_features = projection.weight.shape
    a, grad_a = projection.a.float(), projection.grad_a.float()
    scores = torch.zeros(projection.weight.shape[axis], device=projection.weight.device)
    rows = max(1, ROW_BLOCK_ELEMENTS // in_features)
    for start in range(0, out_features, rows):
        block = slice(start, min(start + rows, out_features))
        b, grad_b = projection.b[block].float(), projection.grad_b[block].float()
        gradient = grad_b @ a + b @ grad_a  # [rows, in]
        if options.quadratic:
            gradient -= grad_b @ grad_a
        gradient *= projection.weight[block].float() + projection.scaling * (b @ a)
        weights = gradient.square_() if options.form == "square" else gradient.abs_()
        if axis == 0:
            scores[block] = weights.sum(1)
        else:
            scores += weights.sum(0)
    return scores


def unit_scores(
    dimension: Dimension, projections: Mapping[str, Projection], options: ImportanceOptions
) -> torch.Tensor:
    """The scores [units] of one dimension, fp32 on the CPU, from those of its projections that wear LoRA.

    ``projections`` maps module names; biases wear no LoRA and contribute nothing.
    """
    total = torch.zeros(dimension.size)
    for part in dimension.weights:
        if part.module in projections:
            scores = _per_unit(part, axis_scores(projections[part.module], part.axis, options)).cpu()
            total += scores / (scores.norm() + 1e-12) if options.normalise else scores
    return total


def _per_unit(part: Slice, scores: torch.Tensor) -> torch.Tensor:
    return scores.view(-1, part.block).sum(1)


class MovingAverage:
    """Ī_t = λ Ī_{t−1} + (1 − λ) Î_t, a dimension; starts at zero, which does not matter for ranking."""

    def __init__(self, graph: PruningGraph, smoothing: float) -> None:
        self._smoothing = smoothing
        self.scores = {dimension.name: torch.zeros(dimension.size) for dimension in graph.dimensions}

    def update(self, scores: Mapping[str, torch.Tensor]) -> None:
        """Take in one step's scores."""
        for name, average in self.scores.items():
            average.mul_(self._smoothing).add_(scores[name], alpha=1 - self._smoothing)
