"""The normal equations give what a solver that sees all rows at once gives."""

from __future__ import annotations

import pytest
import torch
from workbench import relative

from passes.algebra import NormalEquations, Solution
from passes.errors import ModelError


def rows(seed: int = 0, count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator, dtype=torch.float64) + 0.7
    missing = torch.randn(count, 4, generator=generator, dtype=torch.float64) + 2 * inputs[:, :4] - 1.5
    return inputs, missing


def filled(inputs: torch.Tensor, missing: torch.Tensor, *, intercept: bool) -> NormalEquations:
    equations = NormalEquations(intercept=intercept)
    for start in range(0, len(inputs), 7):
        part = slice(start, start + 7)
        equations.add(inputs[part], missing[part], 3 * missing[part])
    return equations


def test_the_step_is_that_of_lstsq() -> None:
    inputs, missing = rows()
    solution = filled(inputs, missing, intercept=False).solve(0.0)
    assert solution.shift is None
    assert relative(solution.step, torch.linalg.lstsq(inputs, missing).solution) < 1e-10


def test_step_and_shift_are_those_of_lstsq_with_a_column_of_ones() -> None:
    inputs, missing = rows()
    solution = filled(inputs, missing, intercept=True).solve(0.0)
    expected = torch.linalg.lstsq(torch.cat([inputs, torch.ones(len(inputs), 1)], 1), missing).solution
    assert relative(solution.step, expected[:-1]) < 1e-10
    assert solution.shift is not None
    assert relative(solution.shift, expected[-1]) < 1e-10


def test_the_ridge_is_in_units_of_the_mean_square_of_the_inputs() -> None:
    """The rows that stand for the ridge are appended to the data."""
    inputs, missing = rows()
    weight = (0.3 * inputs.square().sum(0).mean()).sqrt()
    padded = torch.cat([inputs, weight * torch.eye(6, dtype=torch.float64)]), torch.cat([missing, torch.zeros(6, 4)])
    solution = filled(inputs, missing, intercept=False).solve(0.3)
    assert relative(solution.step, torch.linalg.lstsq(*padded).solution) < 1e-10


@pytest.mark.parametrize("intercept", [False, True])
def test_the_error_is_that_of_the_residual(intercept: bool) -> None:
    inputs, missing = rows()
    equations = filled(inputs, missing, intercept=intercept)
    step = torch.linspace(-1, 2, 24, dtype=torch.float64).view(6, 4)
    shift = torch.tensor([0.3, -1.0, 0.0, 2.0], dtype=torch.float64) if intercept else None
    left = missing - inputs @ step - (0 if shift is None else shift)
    energy = (3 * missing).norm()
    assert equations.error(Solution(step, shift, 0.0)) == pytest.approx(float(left.norm() / energy))
    assert equations.error() == pytest.approx(float(missing.norm() / energy))


def test_a_singular_matrix_gets_a_larger_ridge() -> None:
    inputs, missing = rows()
    twice = torch.cat([inputs, inputs], 1)
    equations = filled(twice, missing, intercept=False)
    solution = equations.solve(0.0)
    assert 0 < solution.ridge < 1e-9
    best = missing - inputs @ torch.linalg.lstsq(inputs, missing).solution
    assert equations.error(solution) == pytest.approx(float(best.norm() / (3 * missing).norm()), rel=1e-6)


def test_inputs_that_are_all_zero_change_nothing() -> None:
    solution = filled(torch.zeros(9, 6), torch.ones(9, 4), intercept=False).solve(0.01)
    assert not solution.step.any()


def test_sums_that_are_not_finite_are_refused() -> None:
    inputs, missing = rows()
    inputs[3, 2] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        filled(inputs, missing, intercept=False).solve(0.01)
