"""XᵀX of rows that come in batches, against fp64."""

from __future__ import annotations

import pytest
import torch

from passes.algebra import Gram, gram


def rows(width: int, dtype: torch.dtype, count: int = 90) -> torch.Tensor:
    generator = torch.Generator().manual_seed(width)
    return (torch.randn(count, width, generator=generator) + 0.5).to(dtype)


def of_batches(values: torch.Tensor) -> Gram:
    made = Gram(values[:1])
    made.add(values[1:40])
    made.add(values[40:])
    return made


def apart(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("block", [3, 8, 512])
@pytest.mark.parametrize("width", [1, 8, 19])
@pytest.mark.parametrize(
    ("dtype", "kept", "close"),
    [
        (torch.bfloat16, torch.float32, 1e-6),
        (torch.float16, torch.float32, 1e-6),
        (torch.float32, torch.float64, 1e-14),
        (torch.float64, torch.float64, 1e-14),
    ],
)
def test_the_products_are_those_of_all_rows_together(
    dtype: torch.dtype, kept: torch.dtype, close: float, width: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram, "BLOCK", block)
    values = rows(width, dtype)
    made, exact = of_batches(values), values.double()
    assert made.products.dtype == kept
    assert made.count == 90
    assert apart(made.products, exact.T @ exact) <= close
    assert apart(made.total, exact.sum(0)) <= close


def test_rows_may_be_added_after_the_products_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "BLOCK", 4)
    values = rows(11, torch.float32)
    made = Gram(values[:40])
    before = made.products.clone()
    made.add(values[40:])
    assert apart(before, values[:40].double().T @ values[:40].double()) < 1e-14
    assert apart(made.products, values.double().T @ values.double()) < 1e-14


def test_wide_rows_are_summed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.algebra.products.DOUBLE_COLUMNS", 8)
    assert Gram(rows(9, torch.float32)).products.dtype == torch.float32
    assert Gram(rows(8, torch.float32)).products.dtype == torch.float64


def test_the_centred_second_moment_is_the_covariance() -> None:
    values = rows(7, torch.float32).double()
    made = of_batches(values)
    assert apart(made.second_moment(centred=True), torch.cov(values.T, correction=0)) < 1e-12
    assert apart(made.second_moment(centred=False), values.T @ values / 90) < 1e-12
