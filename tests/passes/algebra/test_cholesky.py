"""The damped factor: of what it must be, and that it ends."""

from __future__ import annotations

import pytest
import torch

from passes.algebra import damped_factor
from passes.algebra.cholesky import LARGEST_RIDGE, damped_cholesky
from passes.errors import ModelError


def positive(size: int, seed: int = 0) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


def test_the_factor_is_that_of_the_matrix_and_its_ridge() -> None:
    matrix = positive(6)
    factor = damped_factor(matrix, 0.5)
    wanted = matrix + 0.5 * matrix.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(factor @ factor.T, wanted)


def test_only_the_matrix_that_needs_it_gets_a_larger_ridge() -> None:
    indefinite = torch.diag(torch.tensor([4.0, 1.0, -0.5], dtype=torch.float64))  # mean 1.5: 0.1 fails, 1 does
    found = damped_cholesky(torch.stack([positive(3), indefinite]), 0.1)
    assert found.ridge.tolist() == [0.1, 1.0]
    assert not found.failed.any()


def test_no_ridge_at_all_grows_from_the_rounding_of_fp64() -> None:
    found = damped_cholesky(torch.ones(3, 3, dtype=torch.float64) - 1e-9 * torch.eye(3, dtype=torch.float64), 0.0)
    assert 1e-9 < float(found.ridge) < 1e-7
    assert not bool(found.failed)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_matrix_that_is_not_finite_ends_and_is_refused(value: float) -> None:
    matrices = torch.stack([positive(3), torch.full((3, 3), value, dtype=torch.float64)])
    assert damped_cholesky(matrices, 0.01).ridge.max() <= LARGEST_RIDGE
    with pytest.raises(ModelError, match="not finite"):
        damped_factor(matrices, 0.01)


def test_a_matrix_that_no_ridge_mends_is_refused() -> None:
    matrix = torch.diag(torch.tensor([100.0, -99.0], dtype=torch.float64))
    assert bool(damped_cholesky(matrix, 0.01).failed)
    with pytest.raises(ModelError, match="positive definite"):
        damped_factor(matrix, 0.01)
