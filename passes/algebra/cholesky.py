"""Cholesky of matrices that are positive definite to rounding: damped until they are, within bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from passes.errors import ModelError

RIDGE_GROWTH = 10.0
LARGEST_RIDGE = 10.0


@dataclass(frozen=True)
class Damped:
    """L [..., n, n] with LLᵀ = M + λ · mean(diag M) · I, the λ [...] that it took, and where none did (``failed``)."""

    factor: torch.Tensor
    ridge: torch.Tensor
    failed: torch.Tensor


def damped_cholesky(matrices: torch.Tensor, ridge: float) -> Damped:
    """Factor M [..., n, n] in fp64: each λ grows tenfold from ``ridge`` until that works, to ``LARGEST_RIDGE``."""
    size = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)
    size = torch.where(size == 0, torch.finfo(torch.float32).tiny, size)
    ridges = torch.full_like(size, ridge)
    while True:
        damped = matrices.clone()
        damped.diagonal(dim1=-2, dim2=-1).add_((ridges * size)[..., None])
        factor, info = torch.linalg.cholesky_ex(damped)
        failed = info != 0
        larger = (ridges * RIDGE_GROWTH).clamp_min(torch.finfo(torch.float64).eps)
        again = failed & (larger <= LARGEST_RIDGE)
        if not bool(again.any()):
            return Damped(factor, ridges, failed)
        ridges = torch.where(again, larger, ridges)


def damped_factor(matrices: torch.Tensor, ridge: float) -> torch.Tensor:
    """The L of ``damped_cholesky``. Raises ModelError where a matrix has none, as one that is not finite."""
    found = damped_cholesky(matrices, ridge)
    if bool(found.failed.any()) or not bool(torch.isfinite(matrices).all()):
        raise ModelError(
            "a matrix of sums over the calibration data is not finite, or is not positive definite even with a ridge "
            f"of {LARGEST_RIDGE:g} times the mean of its diagonal: look for overflow in the model's activations"
        )
    return found.factor
