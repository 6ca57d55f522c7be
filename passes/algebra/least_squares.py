"""Least squares from sums over rows: the Gram matrix is all that is kept of the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from passes.algebra.cholesky import damped_cholesky
from passes.algebra.gram import Gram
from passes.algebra.products import product
from passes.errors import ModelError


@dataclass(frozen=True)
class Solution:
    """``step`` [columns, outputs] to add to the weight and ``shift`` [outputs] to the bias (None if there is none)."""

    step: torch.Tensor
    shift: torch.Tensor | None
    ridge: float


@dataclass
class _RunningSums:
    """Sums over rows: X'ᵀX', X'ᵀR [columns, outputs], R [outputs], ‖R‖² and ‖Y‖² [], and how many there are."""

    gram: Gram
    cross: torch.Tensor
    missing: torch.Tensor
    squares: torch.Tensor
    energy: torch.Tensor
    rows: int = 0

    @classmethod
    def of(cls, inputs: torch.Tensor, missing: torch.Tensor) -> _RunningSums:
        """The products of the first rows; all else is 0."""
        zero = torch.zeros((), dtype=torch.float64, device=missing.device)
        return cls(Gram(inputs), product(inputs, missing), zero.repeat(missing.shape[1]), zero.clone(), zero.clone())


class NormalEquations:
    """Sums over rows for the least-squares step D that brings X'(W + D) nearest to Y.

    With R = Y − X'W, what is missing at present, D minimises ‖R − X'D‖² + λ·mean(diag G)·‖D‖²:

        (G + λ·mean(diag G)·I) D = X'ᵀR,   G = X'ᵀX'

    The ridge holds W + D near the W that is there and not near zero, so the error never rises whatever λ is: D = 0 is
    a candidate. With an intercept X' and R are centred, and the bias moves by mean(R) − mean(X')D.
    """

    def __init__(self, *, intercept: bool) -> None:
        self._intercept = intercept
        self._seen: _RunningSums | None = None

    @property
    def _sums(self) -> _RunningSums:
        assert self._seen is not None, "no rows were added"
        return self._seen

    @property
    def rows(self) -> int:
        """How many there are."""
        return self._sums.rows

    def add(self, inputs: torch.Tensor, missing: torch.Tensor, target: torch.Tensor) -> None:
        """Take rows in: X' [n, columns], R [n, outputs] and Y [n, outputs]. Nothing waits for the device."""
        if self._seen is None:
            self._seen = _RunningSums.of(inputs, missing)
        else:
            self._seen.gram.add(inputs)
            self._seen.cross += product(inputs, missing)
        sums = self._seen
        sums.missing += missing.sum(0, dtype=torch.float64)
        sums.squares += torch.linalg.vector_norm(missing, dtype=torch.float64).square()
        sums.energy += torch.linalg.vector_norm(target, dtype=torch.float64).square()
        sums.rows += len(inputs)

    def solve(self, ridge: float) -> Solution:
        """The step, by Cholesky in fp64 with the λ that ``damped_cholesky`` takes; none at all where it finds none.

        Raises ModelError if the sums are not finite.
        """
        gram, cross = self._centred()
        if not bool(torch.isfinite(gram).all() and torch.isfinite(cross).all()):
            raise ModelError("the activations on the calibration data are not finite")
        step = torch.zeros_like(cross)
        if float(gram.diagonal().mean()) > 0:
            found = damped_cholesky(gram, ridge)
            ridge = float(found.ridge)
            if not bool(found.failed):
                step = torch.cholesky_solve(cross, found.factor)
        return Solution(step, self.shift(step) if self._intercept else None, ridge)

    def shift(self, step: torch.Tensor) -> torch.Tensor:
        """The move of the bias that is best beside the step: mean(R) − mean(X')D."""
        return (self._sums.missing - self._sums.gram.total @ step) / self.rows

    def error(self, solution: Solution | None = None) -> float:
        """‖R − X'D − shift‖ / ‖Y‖ of any step and shift; by default of none at all."""
        sums = self._sums
        squares, energy = float(sums.squares), float(sums.energy)
        if solution is not None:
            step, shift = solution.step, solution.shift
            squares += float((step * (sums.gram.products.double() @ step - 2 * sums.cross.double())).sum())
            if shift is not None:
                squares += float(shift @ (sums.rows * shift - 2 * (sums.missing - sums.gram.total @ step)))
        return float((max(squares, 0.0) / energy) ** 0.5) if energy else 0.0

    def _centred(self) -> tuple[torch.Tensor, torch.Tensor]:
        sums = self._sums
        gram, cross = sums.gram.products.double(), sums.cross.double()
        if not self._intercept:
            return gram, cross
        inputs, missing = sums.gram.total / sums.rows, sums.missing / sums.rows
        gram = gram - sums.rows * torch.outer(inputs, inputs)
        return gram, cross - sums.rows * torch.outer(inputs, missing)
