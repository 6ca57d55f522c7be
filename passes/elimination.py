"""Removing inputs of a projection and solving for the rest: the error that each removal leaves, from a Gram matrix.

A projection gives XW from X [tokens, inputs]. If its inputs S go and the other rows of W are solved anew, the squared
error of the output rises, with H = XᵀX / tokens, by

    tr(W_Sᵀ ([H⁻¹]_SS)⁻¹ W_S)          and the solution is          W ← W − [H⁻¹]_:S ([H⁻¹]_SS)⁻¹ W_S

Hassibi & Stork 1993 (Optimal Brain Surgeon); for structures Kurtic et al. 2023, arXiv 2302.04089 (ZipLM), eqs. 2 and 3.
Of what is left the inverse is again exact: H⁻¹ ← H⁻¹ − [H⁻¹]_:S ([H⁻¹]_SS)⁻¹ [H⁻¹]_S:.

Projections of one shape are worked on together, on whatever device they are on, and nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

ALONE = 1024
"""Up to so many units, each is removed by itself."""

STEPS = 256
"""Of more, those with the least errors go several at a time, in so many steps."""

DEFERRED = 256
"""Columns of removals that are put off. Each removal reads W once, each settling reads and writes H⁻¹ and W."""

COMPACTED = 0.85
"""When so small a share r of the units is left, the matrices are cut down to them: (1 − r)/(1 − r³) of the work."""

RIDGE_GROWTH = 10.0
LEAST_RISE = 1e-6


def work_bytes(inputs: int, outputs: int) -> int:
    """What removing the units of one projection takes at the most, its two matrices included."""
    wide = min(DEFERRED, inputs)
    return torch.float64.itemsize * (2 * inputs * (inputs + outputs) + wide * (inputs + outputs))


class Surgery:
    """Projections of one shape under removal, one each of ``batch`` dimensions; all in fp64.

    ``inverse`` H⁻¹ [batch, inputs, inputs], ``weight`` [batch, inputs, outputs], and ``units`` [units, width], the
    inputs that each unit owns. Inside, the inputs are in the order of the units, those that no unit owns last.

    Removals are put off: what they change is held as factors P and Q, H⁻¹ − PᵀP and W − PᵀQ, until there are
    ``DEFERRED`` rows of them or ``settle`` is called, so that the large matrices are written once in many removals.
    ``settle`` leaves in ``inverse`` and ``weight`` what is so far; what was removed is zero in both, to rounding.
    """

    def __init__(self, inverse: torch.Tensor, weight: torch.Tensor, units: torch.Tensor) -> None:
        self.units, self.width = units.shape
        owned = units.flatten()
        nobody = torch.ones(weight.shape[1], dtype=torch.bool, device=units.device)
        nobody[owned] = False
        order = torch.cat([owned, nobody.nonzero()[:, 0]])
        self.inverse = inverse.index_select(1, order).index_select(2, order)
        self.weight = weight.index_select(1, order)
        self._start()

    def _start(self) -> None:
        batch, inputs, outputs = self.weight.shape
        self._left, self._right = (self.weight.new_empty(batch, 0, n) for n in (inputs, outputs))
        self._pending = 0
        self._look()

    def _look(self) -> None:
        """Take the diagonal of H⁻¹ and the squared norms of the rows of W from the matrices."""
        self._diagonal = self.inverse.diagonal(dim1=1, dim2=2).clone()
        self._squares = torch.linalg.vector_norm(self.weight, dim=2).square_()

    def settle(self) -> None:
        """Bring the matrices up to date."""
        if not self._pending:
            return
        left, right = self._left[:, : self._pending], self._right[:, : self._pending]
        self.inverse.baddbmm_(left.mT, left, alpha=-1)
        self.weight.baddbmm_(left.mT, right, alpha=-1)
        self._pending = 0
        self._look()

    def errors(self, gone: torch.Tensor) -> torch.Tensor:
        """How much the squared error would rise without each unit: [batch, units]; of those ``gone`` anything."""
        if self.width == 1:
            return self._squares[:, : self.units] / self._diagonal[:, : self.units]
        self.settle()
        owned = self.units * self.width
        square = self.inverse[:, :owned, :owned].unflatten(2, (self.units, -1)).unflatten(1, (self.units, -1))
        blocks = square.diagonal(dim1=1, dim2=3).movedim(3, 1) + torch.diag_embed(
            gone[:, :, None].expand(-1, -1, self.width).to(square)
        )
        rows = self.weight[:, :owned].unflatten(1, (self.units, -1))
        solved = torch.linalg.solve_triangular(_factor(blocks), rows, upper=False)
        return solved.square_().sum((2, 3))

    def remove(self, gone: torch.Tensor) -> None:
        """Remove the units ``gone`` [batch, n] together."""
        owned = (gone[:, :, None] * self.width + torch.arange(self.width, device=gone.device)).flatten(1)
        self._make_room(owned.shape[1])
        left, right = self._left[:, : self._pending], self._right[:, : self._pending]
        before = _columns(left, owned).mT
        across = _rows(self.inverse, owned).baddbmm_(before, left, alpha=-1)  # symmetric, and rows lie together
        factor = _factor(_columns(across, owned))
        new = torch.linalg.solve_triangular(factor, across, upper=False)  # L⁻¹ Cᵀ, so that PᵀP = C K⁻¹ Cᵀ
        rows = _rows(self.weight, owned).baddbmm_(before, right, alpha=-1)
        new_right = torch.linalg.solve_triangular(factor, rows, upper=False)
        if self.width == 1:
            turned = (new_right @ self.weight.mT).baddbmm_(new_right @ right.mT, left, alpha=-1)  # QWᵀ before this
            self._squares -= (new * (2 * turned - (new_right @ new_right.mT) @ new)).sum(1)
            self._diagonal -= new.square().sum(1)
        until = self._pending + owned.shape[1]
        self._left[:, self._pending : until], self._right[:, self._pending : until] = new, new_right
        self._pending = until

    def _make_room(self, rows: int) -> None:
        if self._pending + rows > self._left.shape[1]:
            self.settle()
        if rows > self._left.shape[1]:
            batch, inputs, outputs = self.weight.shape
            room = max(rows, min(DEFERRED, inputs))
            self._left, self._right = (self.weight.new_empty(batch, room, n) for n in (inputs, outputs))

    def keep(self, stay: torch.Tensor) -> None:
        """Go on with the units ``stay`` [batch, n] alone, the others having been removed."""
        self.settle()
        batch, inputs, _ = self.weight.shape
        owned = (stay[:, :, None] * self.width + torch.arange(self.width, device=stay.device)).flatten(1)
        rest = torch.arange(self.units * self.width, inputs, device=stay.device)
        places = torch.cat([owned, rest.expand(batch, -1)], 1)
        self.inverse = _columns(_rows(self.inverse, places), places)
        self.weight = _rows(self.weight, places)
        self.units = stay.shape[1]
        self._start()


def _rows(matrices: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The rows at ``places`` [batch, n] of [batch, rows, columns]: [batch, n, columns]."""
    return matrices.gather(1, places[:, :, None].expand(-1, -1, matrices.shape[2]))


def _columns(matrices: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The columns at ``places`` [batch, n] of [batch, rows, columns]: [batch, rows, n]."""
    return matrices.gather(2, places[:, None, :].expand(-1, matrices.shape[1], -1))


def _factor(matrices: torch.Tensor) -> torch.Tensor:
    """L with LLᵀ = M of matrices that are positive definite to rounding; of others, of their diagonals alone.

    The one thing that could make the device wait is to look whether it went well.
    """
    diagonal = matrices.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(matrices.dtype).tiny).sqrt()
    if matrices.shape[-1] == 1:
        return diagonal[..., None]
    factor, failed = torch.linalg.cholesky_ex(matrices)
    return torch.where(failed[..., None, None] > 0, torch.diag_embed(diagonal), factor)


def damped_factor(matrices: torch.Tensor, ridge: float) -> torch.Tensor:
    """L with LLᵀ = M + λ · mean(diag M) · I of finite M [..., n, n] in fp64; each λ grows tenfold until that is
    positive definite.
    """
    size = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)
    size = torch.where(size == 0, torch.finfo(torch.float32).tiny, size)
    ridges = torch.full_like(size, ridge)
    while True:
        damped = matrices.clone()
        damped.diagonal(dim1=-2, dim2=-1).add_((ridges * size)[..., None])
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            return factor
        larger = (ridges * RIDGE_GROWTH).clamp_min(torch.finfo(torch.float64).eps)
        ridges = torch.where(failed > 0, larger, ridges)


def elimination_errors(surgeries: Sequence[Surgery]) -> torch.Tensor:
    """How much the error rises by each unit at its turn, when always the one of least error goes: [batch, units].

    The errors of a dimension's several projections add up. Where one rises less than the one before it, its error is
    lifted to just above, so that the order of the errors is that of the removals. The projections are used up.
    """
    batch, left = len(surgeries[0].weight), surgeries[0].units
    names = torch.arange(left, device=surgeries[0].weight.device).expand(batch, -1)
    gone = torch.zeros_like(names, dtype=torch.bool)
    together = 1 if left <= ALONE else -(-left // STEPS)
    order: list[torch.Tensor] = []
    errors: list[torch.Tensor] = []
    while left:
        now = torch.stack([surgery.errors(gone) for surgery in surgeries]).sum(0).masked_fill_(gone, torch.inf)
        ascending = now.sort(dim=1, stable=True)
        first = ascending.indices[:, : min(together, left)]
        order.append(names.gather(1, first))
        errors.append(ascending.values[:, : first.shape[1]])
        left -= first.shape[1]
        if not left:
            break
        for surgery in surgeries:
            surgery.remove(first)
        gone = gone.scatter(1, first, True)
        if left <= COMPACTED * names.shape[1]:
            stay = gone.to(torch.uint8).sort(dim=1, stable=True).indices[:, :left]
            for surgery in surgeries:
                surgery.keep(stay)
            names, gone = names.gather(1, stay), torch.zeros_like(stay, dtype=torch.bool)
    lifted = _lifted(torch.cat(errors, 1))
    return torch.empty_like(lifted).scatter_(1, torch.cat(order, 1), lifted)


def _lifted(errors: torch.Tensor) -> torch.Tensor:
    """The errors [batch, units] in the order of removal, each at least a little above the one before it."""
    growth = (1 + LEAST_RISE) ** torch.arange(errors.shape[1], dtype=errors.dtype, device=errors.device)
    return (errors / growth).clamp_min(0).cummax(1).values * growth
