"""Removing inputs of a projection and solving for the rest: the error that each removal leaves, from a Gram matrix.

A projection gives XW from X [tokens, inputs]. If its inputs S go and the other rows of W are re-solved, the squared
error of the output rises, with H = XᵀX / tokens, by

    tr(W_Sᵀ ([H⁻¹]_SS)⁻¹ W_S)          and the solution is          W ← W − [H⁻¹]_:S ([H⁻¹]_SS)⁻¹ W_S

Hassibi & Stork 1993 (Optimal Brain Surgeon); for structures Kurtic et al. 2023, arXiv 2302.04089 (ZipLM), eqs. 2 and 3.
Of what is left the inverse is again exact: H⁻¹ ← H⁻¹ − [H⁻¹]_:S ([H⁻¹]_SS)⁻¹ [H⁻¹]_S:.

Projections of one shape are worked on together, on whatever device they are on, and nothing waits for it. The large
matrices are written once in many removals: between two of these, units are removed one by one from a pool of those with
the least errors, for which H⁻¹ and WWᵀ among the pool are enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

ALONE = 256
"""Up to so many inputs all units are in one pool: always the one of least error goes."""

POOL = 128
"""Inputs of the units that are in a pool where there are more."""

POOL_SHARE = 4
"""One in so many of a pool is removed, then there is a new pool; of a pool of fewer the one of least error."""

COMPACTED = 0.85
"""When so small a share r of the units is left, the matrices are cut down to them: (1 − r)/(1 − r³) of the work."""

LEAST_RISE = 1e-6


def work_bytes(inputs: int, outputs: int) -> int:
    """What removing the units of one projection takes at the most, its two matrices included."""
    return torch.float64.itemsize * 2 * inputs * (inputs + outputs)


class Surgery:
    """Projections of one shape under removal, one each of ``batch`` dimensions; all in fp64.

    ``inverse`` H⁻¹ [batch, inputs, inputs], ``weight`` [batch, inputs, outputs], and ``units`` [units, width], the
    inputs that each unit owns. Inside, the inputs are in the order of the units, those that no unit owns last. The
    matrices are written to; what was removed is zero in both, to rounding.
    """

    def __init__(self, inverse: torch.Tensor, weight: torch.Tensor, units: torch.Tensor) -> None:
        self.units, self.width = units.shape
        owned = units.flatten()
        nobody = torch.ones(weight.shape[1], dtype=torch.bool, device=units.device)
        nobody[owned] = False
        order = torch.cat([owned, nobody.nonzero()[:, 0]])
        # LAPACK gives columns that lie together; what is symmetric can be read as rows that do.
        self.inverse, self.weight = inverse.mT.contiguous(), weight.contiguous()
        if not torch.equal(order, torch.arange(len(order), device=order.device)):
            self.inverse = inverse.index_select(1, order).index_select(2, order)
            self.weight = weight.index_select(1, order)

    def errors(self, gone: torch.Tensor) -> torch.Tensor:
        """How much the squared error would rise without each unit: [batch, units]; of those ``gone`` anything."""
        if self.width == 1:
            squares: torch.Tensor = torch.linalg.vector_norm(self.weight[:, : self.units], dim=2).square_()
            return squares / self.inverse.diagonal(dim1=1, dim2=2)[:, : self.units]
        blocks = _blocks(self.inverse, self.units, self.width) + _ones(gone, self.width)
        rows = self.weight[:, : self.units * self.width].reshape(len(gone), self.units, self.width, -1)
        solved: torch.Tensor = torch.linalg.solve_triangular(_factor(blocks), rows, upper=False)
        return solved.square_().sum((2, 3))

    def pool(self, among: torch.Tensor) -> Pool:
        """The units ``among`` [batch, n] by themselves."""
        owned = _owned(among, self.width)
        rows = _rows(self.weight, owned)
        return Pool(_columns(_rows(self.inverse, owned), owned), rows @ rows.mT, self.width)

    def remove(self, gone: torch.Tensor) -> None:
        """Remove the units ``gone`` [batch, n] together."""
        owned = _owned(gone, self.width)
        across = _rows(self.inverse, owned)  # symmetric, and rows lie together
        factor = _factor(_columns(across, owned))
        left = torch.linalg.solve_triangular(factor, across, upper=False)  # P = L⁻¹ Cᵀ, and PᵀP = C K⁻¹ Cᵀ
        right = torch.linalg.solve_triangular(factor, _rows(self.weight, owned), upper=False)
        self.inverse.baddbmm_(left.mT, left, alpha=-1)
        self.weight.baddbmm_(left.mT, right, alpha=-1)

    def keep(self, stay: torch.Tensor) -> None:
        """Go on with the units ``stay`` [batch, n] alone, the others having been removed."""
        batch, inputs, _ = self.weight.shape
        rest = torch.arange(self.units * self.width, inputs, device=stay.device)
        places = torch.cat([_owned(stay, self.width), rest.expand(batch, -1)], 1)
        self.inverse = _rows(_rows(self.inverse, places).mT, places)  # symmetric
        self.weight = _rows(self.weight, places)
        self.units = stay.shape[1]


class Pool:
    """Some units of a ``Surgery``: H⁻¹ and WWᵀ [batch, inputs, inputs] among them, under removal one by one."""

    def __init__(self, inverse: torch.Tensor, products: torch.Tensor, width: int) -> None:
        self.inverse, self.products, self.width = inverse, products, width
        self.units = inverse.shape[1] // width

    def errors(self, gone: torch.Tensor) -> torch.Tensor:
        """See ``Surgery``: tr(([H⁻¹]_SS)⁻¹ [WWᵀ]_SS)."""
        if self.width == 1:
            return self.products.diagonal(dim1=1, dim2=2) / self.inverse.diagonal(dim1=1, dim2=2)
        blocks = _blocks(self.inverse, self.units, self.width) + _ones(gone, self.width)
        solved = torch.cholesky_solve(_blocks(self.products, self.units, self.width), _factor(blocks))
        return solved.diagonal(dim1=2, dim2=3).sum(2)

    def remove(self, gone: torch.Tensor) -> None:
        """Remove one unit of each dimension, ``gone`` [batch, 1]."""
        if self.width == 1:
            self._remove_one(gone)
            return
        owned = _owned(gone, self.width)
        across, products = _rows(self.inverse, owned).mT, _rows(self.products, owned).mT
        block = _columns(across.mT, owned)
        # T = C K⁻¹, and W ← W − T W_S
        step = torch.cholesky_solve(across.mT, _factor(block)).mT
        self.inverse.baddbmm_(step, across.mT, alpha=-1)
        half = products - step @ _columns(products.mT, owned) / 2
        self.products.baddbmm_(torch.cat([step, half], 2), torch.cat([half, step], 2).mT, alpha=-1)

    def _remove_one(self, gone: torch.Tensor) -> None:
        """The same of units of one input, where outer products of two vectors are all there is."""
        across, products = _rows(self.inverse, gone), _rows(self.products, gone)  # [batch, 1, inputs]
        step = across / across.gather(2, gone[:, :, None])
        half = products - step * products.gather(2, gone[:, :, None]) / 2
        self.inverse.addcmul_(step.mT, across, value=-1)
        self.products.addcmul_(step.mT, half, value=-1).addcmul_(half.mT, step, value=-1)


def _owned(units: torch.Tensor, width: int) -> torch.Tensor:
    """The inputs of units [batch, n]: [batch, n · width]."""
    return (units[:, :, None] * width + torch.arange(width, device=units.device)).flatten(1)


def _blocks(matrices: torch.Tensor, units: int, width: int) -> torch.Tensor:
    """The diagonal blocks of [batch, inputs, inputs]: [batch, units, width, width]."""
    owned = units * width
    square = matrices[:, :owned, :owned].reshape(-1, units, width, units, width)
    return square.diagonal(dim1=1, dim2=3).movedim(3, 1)


def _ones(gone: torch.Tensor, width: int) -> torch.Tensor:
    """What makes the empty blocks of removed units invertible."""
    return torch.diag_embed(gone[:, :, None].expand(-1, -1, width).double())


def _rows(matrices: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The rows at ``places`` [batch, n] of [batch, rows, columns]: [batch, n, columns]."""
    batch, rows, columns = matrices.shape
    first = torch.arange(0, batch * rows, rows, device=places.device)[:, None]
    return matrices.reshape(-1, columns).index_select(0, (places + first).flatten()).view(batch, -1, columns)


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


def elimination_errors(surgeries: Sequence[Surgery]) -> torch.Tensor:
    """How much the error rises by each unit at its turn, when always the one of least error goes: [batch, units].

    The errors of a dimension's several projections add up. Where one rises less than the one before it, its error is
    lifted to just above, so that the order of the errors is that of the removals. The projections are used up.
    """
    batch, left = len(surgeries[0].weight), surgeries[0].units
    units, width = left, max(surgery.width for surgery in surgeries)
    names = torch.arange(left, device=surgeries[0].weight.device).expand(batch, -1)
    gone = torch.zeros_like(names, dtype=torch.bool)
    order: list[torch.Tensor] = []
    errors: list[torch.Tensor] = []
    while left:
        size = left if units * width <= ALONE else min(left, max(1, POOL // width))
        taken, rises = _round(surgeries, gone, size, left)
        order.append(names.gather(1, taken))
        errors.append(rises)
        left -= taken.shape[1]
        if not left:
            break
        for surgery in surgeries:
            surgery.remove(taken)
        gone = gone.scatter(1, taken, True)
        if left <= COMPACTED * names.shape[1]:
            stay = gone.to(torch.uint8).sort(dim=1, stable=True).indices[:, :left]
            for surgery in surgeries:
                surgery.keep(stay)
            names, gone = names.gather(1, stay), torch.zeros_like(stay, dtype=torch.bool)
    lifted = _lifted(torch.cat(errors, 1))
    return torch.empty_like(lifted).scatter_(1, torch.cat(order, 1), lifted)


def _round(surgeries: Sequence[Surgery], gone: torch.Tensor, size: int, left: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The units that go next, of a pool of ``size`` or, if nothing else is ``left``, all; and their errors; [batch, n].

    Nothing is removed from the projections yet.
    """
    now = _total(surgeries, gone).sort(dim=1, stable=True)
    among, count = now.indices[:, :size], left if size == left else max(1, size // POOL_SHARE)
    if count == 1:
        return among[:, :1], now.values[:, :1]
    pools = [surgery.pool(among) for surgery in surgeries]
    out = torch.zeros_like(among, dtype=torch.bool)
    taken: list[torch.Tensor] = []
    errors: list[torch.Tensor] = []
    for _ in range(count):
        least, first = _total(pools, out).min(1, keepdim=True)
        taken.append(first)
        errors.append(least)
        out = out.scatter(1, first, True)
        for pool in pools:
            pool.remove(first)
    return among.gather(1, torch.cat(taken, 1)), torch.cat(errors, 1)


def _total(parts: Sequence[Surgery] | Sequence[Pool], gone: torch.Tensor) -> torch.Tensor:
    return torch.stack([part.errors(gone) for part in parts]).sum(0).masked_fill_(gone, torch.inf)


def _lifted(errors: torch.Tensor) -> torch.Tensor:
    """The errors [batch, units] in the order of removal, each at least a little above the one before it."""
    growth = (1 + LEAST_RISE) ** torch.arange(errors.shape[1], dtype=errors.dtype, device=errors.device)
    return (errors / growth).clamp_min(0).cummax(1).values * growth
