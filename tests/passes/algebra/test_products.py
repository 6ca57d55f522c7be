"""Products of rows against fp64."""

from __future__ import annotations

import pytest
import torch

from passes.algebra import product, products


def rows(width: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(300, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "kept", "close"),
    [
        (torch.bfloat16, torch.float32, 1e-6),
        (torch.float16, torch.float32, 1e-6),
        (torch.float32, torch.float64, 1e-15),
        (torch.float64, torch.float64, 1e-15),
    ],
)
def test_products_of_half_precision_values_lose_nothing_but_the_rounding_of_fp32_sums(
    dtype: torch.dtype, kept: torch.dtype, close: float
) -> None:
    left, right = rows(256, dtype, 0), rows(64, dtype, 1)
    found, exact = product(left, right), left.double().T @ right.double()
    assert found.dtype == kept
    assert float((found - exact).abs().max()) <= close * float(exact.abs().max())


def test_half_precision_against_fp32_is_fp32() -> None:
    left, right = rows(64, torch.bfloat16, 0), rows(32, torch.float32, 1)
    exact = left.double().T @ right.double()
    assert float((product(left, right) - exact).abs().max()) <= 1e-6 * float(exact.abs().max())


def test_wide_rows_are_multiplied_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "DOUBLE_COLUMNS", 16)
    assert product(rows(17, torch.float32, 0), rows(4, torch.float32, 1)).dtype == torch.float32
    assert product(rows(16, torch.float32, 0), rows(4, torch.float32, 1)).dtype == torch.float64


def test_the_precision_of_other_products_is_as_it_was() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    product(rows(64, torch.bfloat16, 0), rows(64, torch.bfloat16, 1))
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert torch.get_float32_matmul_precision() == "highest"
