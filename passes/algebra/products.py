"""Products of what many rows hold, XᵀY: as exact as the values are, and as fast as that allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

DOUBLE_COLUMNS = 2048
"""Up to so many columns, products are formed and summed in fp64; beyond, in fp32."""


def sums_in(dtype: torch.dtype, width: int) -> torch.dtype:
    """What products of rows [width] are summed in: fp32 of half precision and where the rows are wide, else fp64."""
    return torch.float32 if dtype.itemsize < 4 or width > DOUBLE_COLUMNS else torch.float64


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """XᵀY [a, b] of rows X [n, a] and Y [n, b].

    Of half-precision values: each product of two is exact in fp32, and the sums are fp32. Else as ``sums_in`` says.
    """
    if left.dtype == right.dtype == torch.bfloat16:
        return _of_bfloat16(left, right)
    kept = sums_in(min(left.dtype, right.dtype, key=lambda dtype: dtype.itemsize), left.shape[1])
    return left.to(kept).T @ right.to(kept)


def add_upper(total: torch.Tensor, values: torch.Tensor, blocks: Iterable[slice]) -> None:
    """Add XᵀX of rows X [n, width] to a total [width, width] in ``sums_in``: of each block of columns the products with
    itself and all later columns, as exact as those of ``product``.
    """
    halves, on_device = values.dtype is torch.bfloat16, values.device.type == "cuda"
    values = values if halves and on_device else values.to(total.dtype)
    with _bfloat16_units() if halves and not on_device else nullcontext():
        for block in blocks:
            left, right = values[:, block].T, values[:, block.start :]
            found = torch.mm(left, right, out_dtype=torch.float32) if halves and on_device else left @ right
            total[block, block.start :] += found


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
