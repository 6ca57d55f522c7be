"""Products of what many rows hold, XᵀY: as exact as the values are, and as fast as that allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

DOUBLE_COLUMNS = 2048
"""Up to so many columns, products are formed and summed in fp64; beyond, in fp32."""


def sums_in(dtype: torch.dtype, width: int) -> torch.dtype:
    """What products of rows [width] are summed in: fp32 of half precision and where the rows are wide, else fp64."""
    return torch.float32 if dtype.itemsize < 4 or width > DOUBLE_COLUMNS else torch.float64


def product(left: torch.Tensor, right: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """XᵀY [a, b] of rows X [n, a] and Y [n, b] in one dtype.

    Of half-precision values: each product of two is exact in fp32, and the sums are fp32. Else as ``sums_in`` says of
    rows of ``width`` (default: X's).
    """
    if left.dtype == right.dtype == torch.bfloat16:
        return _of_bfloat16(left, right)
    kept = sums_in(min(left.dtype, right.dtype, key=lambda dtype: dtype.itemsize), width or left.shape[1])
    return left.to(kept).T @ right.to(kept)


def _of_bfloat16(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left.device.type == "cuda":
        return torch.mm(left.T, right, out_dtype=torch.float32)
    with _bfloat16_units():
        return left.float().T @ right.float()


@contextmanager
def _bfloat16_units() -> Iterator[None]:
    """oneDNN may round what it multiplies to bf16, inside the block, and so use the processor's units for that.

    Values that are bf16 lose nothing by it, and the sums stay fp32.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    was = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = was
