"""Removing inputs of a projection and solving for the rest: the error that each removal leaves, from a Gram matrix.

A projection gives XW from X [tokens, inputs]. If its inputs S go and the other rows of W are solved anew, the squared
error of the output rises, with H = XᵀX / tokens, by

    tr(W_Sᵀ ([H⁻¹]_SS)⁻¹ W_S)          and the solution is          W ← W − [H⁻¹]_:S ([H⁻¹]_SS)⁻¹ W_S

Hassibi & Stork 1993 (Optimal Brain Surgeon); for structures Kurtic et al. 2023, arXiv 2302.04089 (ZipLM), eqs. 2 and 3.
Of what is left the inverse is again exact: H⁻¹ ← H⁻¹ − [H⁻¹]_:S ([H⁻¹]_SS)⁻¹ [H⁻¹]_S:.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

ELIMINATIONS = 1024
"""Up to so many units, each is removed by itself; of more, several with the least errors go at a time."""

DEFERRED = 256
"""Columns of removals that are put off. Each removal reads W once, each settling reads and writes H⁻¹ and W."""

COMPACTED = 0.85
"""When so small a share r of the units is left, the matrices are cut down to them: (1 − r)/(1 − r³) of the work."""

RIDGE_GROWTH = 10.0


@dataclass
class Surgery:
    """A projection under removal: ``inverse`` H⁻¹ [inputs, inputs], ``weight`` [inputs, outputs], both fp64, and
    ``units`` [units, width], the inputs that each unit owns.

    Removals are put off: what they change is held as factors P and Q, H⁻¹ − PPᵀ and W − PQ, until there are
    ``DEFERRED`` columns of them or ``settle`` is called, so that the large matrices are written once in many removals.
    ``settle`` leaves in ``inverse`` and ``weight`` what is so far; what was removed is zero in both, to rounding.
    """

    inverse: torch.Tensor
    weight: torch.Tensor
    units: torch.Tensor
    _left: torch.Tensor = field(init=False, repr=False)
    _right: torch.Tensor = field(init=False, repr=False)
    _pending: int = field(init=False, repr=False, default=0)
    _diagonal: torch.Tensor = field(init=False, repr=False)
    _squares: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        inputs, outputs = self.weight.shape
        self._left, self._right = self.inverse.new_empty(inputs, 0), self.weight.new_empty(0, outputs)
        self._look()

    def _look(self) -> None:
        """Take the diagonal of H⁻¹ and the squared norms of the rows of W from the matrices."""
        self._diagonal, self._squares = self.inverse.diagonal().clone(), self.weight.square().sum(1)

    def settle(self) -> None:
        """Bring the matrices up to date."""
        if not self._pending:
            return
        left, right = self._left[:, : self._pending], self._right[: self._pending]
        self.inverse.addmm_(left, left.T, alpha=-1)
        self.weight.addmm_(left, right, alpha=-1)
        self._pending = 0
        self._look()

    def errors(self, among: torch.Tensor) -> torch.Tensor:
        """How much the squared error would rise without each of the units ``among`` [n]: [n]."""
        owned = self.units[among]
        if owned.shape[1] == 1:
            return self._squares[owned[:, 0]] / self._diagonal[owned[:, 0]]
        self.settle()
        rows = self.weight[owned]
        blocks = self.inverse[owned[:, :, None], owned[:, None, :]]
        solved: torch.Tensor = torch.linalg.solve(blocks, rows)
        return (rows * solved).sum((1, 2))

    def remove(self, gone: torch.Tensor) -> None:
        """Remove the units ``gone`` [n] together."""
        owned = self.units[gone].flatten()
        self._make_room(len(owned))
        pending = slice(self._pending)
        left, right = self._left[:, pending], self._right[pending]
        across = (self.inverse.index_select(0, owned) - left[owned] @ left.T).T  # symmetric, and rows lie together
        factor = damped_factor(across[owned], 0.0)
        new = torch.linalg.solve_triangular(factor.T, across, upper=True, left=False)  # C L⁻ᵀ, so that PPᵀ = C K⁻¹ Cᵀ
        rows = self.weight[owned] - left[owned] @ right
        new_right = torch.linalg.solve_triangular(factor, rows, upper=False)
        turned = self.weight @ new_right.T - left @ (right @ new_right.T)  # W Qᵀ, before this removal
        self._squares -= (new * (2 * turned - new @ (new_right @ new_right.T))).sum(1)
        self._diagonal -= new.square().sum(1)
        until = self._pending + len(owned)
        self._left[:, self._pending : until], self._right[self._pending : until] = new, new_right
        self._pending = until

    def _make_room(self, columns: int) -> None:
        if self._pending + columns > self._left.shape[1]:
            self.settle()
        if columns > self._left.shape[1]:
            room = max(columns, min(DEFERRED, len(self.inverse)))
            self._left = self.inverse.new_empty(len(self.inverse), room)
            self._right = self.weight.new_empty(room, self.weight.shape[1])

    def only(self, among: torch.Tensor) -> Surgery:
        """The same with the units ``among`` [n] alone, the others having been removed."""
        self.settle()
        stays = torch.ones(len(self.inverse), dtype=torch.bool, device=self.units.device)
        stays[self.units.flatten()] = False
        stays[self.units[among].flatten()] = True
        places, stay = stays.cumsum(0) - 1, stays.nonzero()[:, 0]
        inverse = self.inverse.index_select(0, stay).index_select(1, stay)
        return Surgery(inverse, self.weight.index_select(0, stay), places[self.units[among]])


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
        if len(left) <= COMPACTED * len(names):
            surgeries = [surgery.only(left) for surgery in surgeries]
            names, left = names[left], torch.arange(len(left))
    return found
