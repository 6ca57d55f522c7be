"""Least squares from sums over rows: the Gram matrix is all that is kept of the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from passes.algebra.cholesky import damped_cholesky
from passes.algebra.products import product
from passes.errors import ModelError
from passes.ranks import sum_over_ranks


@dataclass(frozen=True)
class Solution:
    """``step`` [columns, outputs] to add to the weight and ``shift`` [outputs] to the bias (None if there is none)."""

    step: torch.Tensor
    shift: torch.Tensor | None
    ridge: float


class NormalEquations:
    """Sums over rows for the least-squares step D that brings X'(W + D) nearest to Y.

    With R = Y − X'W, what is missing at present, D minimises ‖R − X'D‖² + λ·mean(diag G)·‖D‖²:

        (G + λ·mean(diag G)·I) D = X'ᵀR,   G = X'ᵀX'

    The ridge holds W + D near the W that is there and not near zero, so the error never rises whatever λ is: D = 0 is
    a candidate. With an intercept X' and R are centred, and the bias moves by mean(R) − mean(X')D.
    """

    def __init__(self, columns: int, outputs: int, *, intercept: bool, device: torch.device | str = "cpu") -> None:
        self._intercept = intercept
        self._gram, self._cross = (
            torch.zeros(columns, n, dtype=torch.float64, device=device) for n in (columns, outputs)
        )
        self._inputs, self._missing = (torch.zeros(n, dtype=torch.float64, device=device) for n in (columns, outputs))
        self._squares, self._energy = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self.rows = 0

    def add(self, inputs: torch.Tensor, missing: torch.Tensor, target: torch.Tensor) -> None:
        """Take rows in: X' [n, columns], R [n, outputs] and Y [n, outputs]. Sums over batches are fp64."""
        self._gram += product(inputs, inputs)
        self._cross += product(inputs, missing)
        self._inputs += inputs.sum(0, dtype=torch.float64)
        self._missing += missing.sum(0, dtype=torch.float64)
        self._squares += missing.double().square().sum()
        self._energy += target.double().square().sum()
        self.rows += len(inputs)

    def over_ranks(self) -> None:
        """Take in the rows of all ranks."""
        rows = torch.tensor(self.rows, device=self._gram.device)
        for tensor in (self._gram, self._cross, self._inputs, self._missing, self._squares, self._energy, rows):
            sum_over_ranks(tensor)
        self.rows = int(rows)

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
        return (self._missing - self._inputs @ step) / self.rows

    def error(self, solution: Solution | None = None) -> float:
        """‖R − X'D − shift‖ / ‖Y‖ of any step and shift; by default of none at all."""
        squares, energy = float(self._squares), float(self._energy)
        if solution is not None:
            step, shift = solution.step, solution.shift
            squares += float((step * (self._gram @ step - 2 * self._cross)).sum())
            if shift is not None:
                squares += float(shift @ (self.rows * shift - 2 * (self._missing - self._inputs @ step)))
        return float((max(squares, 0.0) / energy) ** 0.5) if energy else 0.0

    def _centred(self) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._intercept:
            return self._gram, self._cross
        inputs, missing = self._inputs / self.rows, self._missing / self.rows
        gram = self._gram - self.rows * torch.outer(inputs, inputs)
        return gram, self._cross - self.rows * torch.outer(inputs, missing)
