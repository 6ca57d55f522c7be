from __future__ import annotations

import pytest
import torch

from passes.models import Parity, relative_difference, rounding_tolerance


def test_the_difference_is_relative_to_the_largest_reference_value() -> None:
    assert relative_difference(torch.tensor([1.0, -4.0]), torch.tensor([2.0, -4.0])) == 0.25
    assert relative_difference(torch.tensor([1.0, -4.0]), torch.tensor([1.0, -4.0])) == 0.0
    assert relative_difference(torch.tensor([1.0, -5.0]), torch.tensor([1.0, -4.0])) == 0.25


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["actual", "expected"])
def test_values_that_are_not_finite_never_hold(value: float, side: str) -> None:
    odd, fine = torch.tensor([1.0, value]), torch.tensor([1.0, 2.0])
    found = relative_difference(odd, fine) if side == "actual" else relative_difference(fine, odd)
    assert not Parity("logits", found, 1e-5).holds


def test_another_shape_is_infinitely_different() -> None:
    assert relative_difference(torch.ones(2, 3), torch.ones(3, 2)) == float("inf")


def test_a_reference_of_zeros_gives_no_division_by_zero() -> None:
    assert relative_difference(torch.zeros(3), torch.zeros(3)) == 0.0
    assert not Parity("logits", relative_difference(torch.full((3,), 1e-3), torch.zeros(3)), 1e-5).holds


def test_half_precision_differences_do_not_overflow() -> None:
    assert relative_difference(torch.tensor([-6e4]).half(), torch.tensor([6e4]).half()) == pytest.approx(2)


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("float32", 9e-6, 1e-5), ("bfloat16", 1e-2, 1e-1), ("float16", 1e-3, 2e-2)]
)
def test_the_tolerance_follows_from_the_dtype(dtype: str, low: float, high: float) -> None:
    assert low <= rounding_tolerance(getattr(torch, dtype)) <= high


def test_the_text_states_name_number_and_limit() -> None:
    assert str(Parity("merge", 2e-3, 1e-5)) == "merge: relative difference 2.00e-03 > 1e-05"
    assert str(Parity("merge", 0.0, 0.0)) == "merge: relative difference 0.00e+00 <= 0e+00"
