"""Products of what many rows hold, XᵀY: as exact as the values are, and as fast as that allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

DOUBLE_COLUMNS = 2048
"""Up to so many columns, products are formed in fp64; beyond, in fp32 a batch and summed in fp64."""


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """XᵀY [a, b] of rows X [n, a] and Y [n, b] in one dtype.

    Of half-precision values: each product of two is exact in fp32, and the sums are fp32. Else in fp64, where the rows
    are wider than ``DOUBLE_COLUMNS`` in fp32.
    """
    if left.dtype == right.dtype == torch.bfloat16:
        return _of_bfloat16(left, right)
    if torch.float16 in (left.dtype, right.dtype) or torch.bfloat16 in (left.dtype, right.dtype):
        return left.float().T @ right.float()
    kept = torch.float64 if left.shape[1] <= DOUBLE_COLUMNS else torch.float32
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
