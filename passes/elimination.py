"""Removing inputs of a projection and solving for the rest: the error that each removal leaves, from a Gram matrix.

A projection gives XW from X [tokens, inputs]. If its inputs S go and the other rows of W are solved anew, the squared
error of the output rises, with H = XᵀX / tokens, by

    tr(W_Sᵀ ([H⁻¹]_SS)⁻¹ W_S)          and the solution is          W ← W − [H⁻¹]_:S ([H⁻¹]_SS)⁻¹ W_S

Hassibi & Stork 1993 (Optimal Brain Surgeon); for structures Kurtic et al. 2023, arXiv 2302.04089 (ZipLM), eqs. 2 and 3.
Of what is left the inverse is again exact: H⁻¹ ← H⁻¹ − [H⁻¹]_:S ([H⁻¹]_SS)⁻¹ [H⁻¹]_S:.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

ELIMINATIONS = 1024
"""Up to so many units, each is removed by itself; of more, several with the least errors go at a time."""

RIDGE_GROWTH = 10.0


@dataclass
class Surgery:
    """A projection under removal: ``inverse`` H⁻¹ [inputs, inputs], ``weight`` [inputs, outputs], both fp64, and
    ``units`` [units, width], the inputs that each unit owns. What is removed becomes zero in both.
    """

    inverse: torch.Tensor
    weight: torch.Tensor
    units: torch.Tensor

    def errors(self, among: torch.Tensor) -> torch.Tensor:
        """How much the squared error would rise without each of the units ``among`` [n]: [n]."""
        owned = self.units[among]
        rows = self.weight[owned]
        if owned.shape[1] == 1:
            return rows.square().sum((1, 2)) / self.inverse.diagonal()[owned[:, 0]]
        blocks = self.inverse[owned[:, :, None], owned[:, None, :]]
        solved: torch.Tensor = torch.linalg.solve(blocks, rows)
        return (rows * solved).sum((1, 2))

    def remove(self, gone: torch.Tensor) -> None:
        """Remove the units ``gone`` [n] together."""
        owned = self.units[gone].flatten()
        across = self.inverse[:, owned]
        solved = torch.linalg.solve(across[owned], torch.cat([across.T, self.weight[owned]], 1))
        self.inverse.addmm_(across, solved[:, : len(across)], alpha=-1)
        self.weight.addmm_(across, solved[:, len(across) :], alpha=-1)

    def only(self, among: torch.Tensor) -> Surgery:
        """The same with the units ``among`` [n] alone, the others having been removed."""
        stays = torch.ones(len(self.inverse), dtype=torch.bool, device=self.units.device)
        stays[self.units.flatten()] = False
        stays[self.units[among].flatten()] = True
        places = stays.cumsum(0) - 1
        return Surgery(self.inverse[stays][:, stays], self.weight[stays], places[self.units[among]])


def damped_factor(matrix: torch.Tensor, ridge: float) -> torch.Tensor:
    """L with LLᵀ = M + λ · mean(diag M) · I of a finite M in fp64; λ grows tenfold until that is positive definite."""
    size = float(matrix.diagonal().mean()) or torch.finfo(torch.float32).tiny
    while True:
        factor: torch.Tensor
        damped = matrix.clone()
        damped.diagonal().add_(ridge * size)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed):
            return factor
        ridge = max(ridge * RIDGE_GROWTH, torch.finfo(torch.float64).eps)


def elimination_errors(surgeries: Sequence[Surgery]) -> torch.Tensor:
    """How much the error rises by each unit at its turn, when always the one of least error goes: [units].

    Where one rises less than the one before it, its error is lifted to just above, so that the order of the
    errors is that of the removals. The projections are used up.
    """
    names = left = torch.arange(len(surgeries[0].units))
    found = torch.zeros(len(left), dtype=torch.float64)
    together, least = -(-len(left) // ELIMINATIONS), 0.0
    while len(left):
        errors = torch.stack([surgery.errors(left).cpu() for surgery in surgeries]).sum(0)
        first = torch.sort(errors, stable=True).indices[:together]
        for index in first.tolist():
            least = max(float(errors[index]), least * (1 + 1e-6))
            found[names[left[index]]] = least
        for surgery in surgeries:
            surgery.remove(left[first])
        stay = torch.ones(len(left), dtype=torch.bool)
        stay[first] = False
        left = left[stay]
        if 2 * len(left) <= len(names):
            surgeries = [surgery.only(left) for surgery in surgeries]
            names, left = names[left], torch.arange(len(left))
    return found
