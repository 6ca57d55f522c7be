from __future__ import annotations

import pytest
import torch

from passes.models import bit_difference, constant_difference, plain_arithmetic, widened
from passes.models.precision import digest


@pytest.mark.parametrize("mode", ["highest", "high", "medium"])
def test_arithmetic_is_plain_inside_and_afterwards_as_the_user_had_it(mode: str) -> None:
    torch.set_float32_matmul_precision(mode)
    was = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with plain_arithmetic():
                assert (
                    torch.backends.cuda.matmul.fp32_precision == torch.backends.mkldnn.matmul.fp32_precision == "ieee"
                )
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == mode
        assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision) == was
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("fails", [False, True])
def test_widened_tensors_get_their_own_storage_back(fails: bool) -> None:
    parameter, numbers = torch.nn.Parameter(torch.ones(3).bfloat16()), torch.arange(3)
    place = parameter.data_ptr()
    try:
        with widened([parameter, numbers]):
            assert (parameter.dtype, numbers.dtype) == (torch.float64, torch.int64)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert (parameter.dtype, parameter.data_ptr()) == (torch.bfloat16, place)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
)
def test_tensors_are_compared_bit_by_bit(dtype: torch.dtype) -> None:
    one = torch.tensor([0, 1, 0, 1]).to(dtype)
    assert bit_difference(one, one.clone()) is None
    other = one.clone()
    other[1] = 0
    assert bit_difference(other, one) == "differs in 1 of 4 elements"
    assert bit_difference(one[:2], one) == "has shape [2], not [4]"


def test_zeros_of_other_sign_differ_and_the_same_nan_does_not() -> None:
    assert bit_difference(torch.tensor([0.0]), torch.tensor([-0.0])) == "differs in 1 of 1 elements"
    assert bit_difference(torch.tensor([torch.nan]), torch.tensor([torch.nan])) is None
    assert bit_difference(torch.ones(2), torch.ones(2).half()) == "is torch.float32, not torch.float16"


def test_a_constant_that_was_rounded_is_the_same_and_another_is_not() -> None:
    exact = torch.tensor([0.1, 0.7])
    assert constant_difference(exact.bfloat16(), exact) is None
    assert constant_difference(exact.bfloat16() * 1.01, exact) == "differs in 2 of 2 elements"
    assert constant_difference(exact * (1 + 1e-6), exact) is not None


def test_a_digest_is_of_bytes_in_their_order() -> None:
    assert digest(torch.tensor([1.0, 2.0])) == digest(torch.tensor([1.0, 2.0])) != digest(torch.tensor([2.0, 1.0]))
    assert digest(torch.tensor(1.0)) == digest(torch.tensor([1.0]))
