"""The kernel of ``low_rank_sums`` for CUDA devices: each element of a weight is read once, and none is written.

To be imported only where Triton is installed. Its interpreter (TRITON_INTERPRET=1) runs it on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from passes.algebra.low_rank import Sums, Worn, stacked

TALL, WIDE = 64, 64
"""Rows and columns of a tile."""

PROGRAMS = 1024
"""So many programs at least, where there are as many tiles: several for each processor of a large GPU."""


@triton.jit
def _read(place, row, row_step, column, column_step, mask):  # type: ignore[no-untyped-def]
    """A tile in fp32, 0 where the mask is off."""
    return tl.load(place + row[:, None] * row_step + column[None, :] * column_step, mask, 0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    weight, left, right, grad_left, grad_right, row_parts, column_parts, scaling, rows, columns, row_blocks,
    weight_entry, weight_row, weight_column, left_entry, left_row, left_rank, right_entry, right_rank, right_column,
    grad_left_entry, grad_left_row, grad_left_rank, grad_right_entry, grad_right_rank, grad_right_column,
    rank: tl.constexpr, tiles: tl.constexpr, square: tl.constexpr, quadratic: tl.constexpr, precision: tl.constexpr,
    tall: tl.constexpr, wide: tl.constexpr, deep: tl.constexpr,
):  # fmt: skip
    """The rows of one block of an entry, through ``tiles`` tiles of columns: their sums, and each tile's columns'."""
    at, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    entry, row = at // row_blocks, (at % row_blocks) * tall + tl.arange(0, tall)
    weight, left, grad_left = (
        weight + entry * weight_entry,
        left + entry * left_entry,
        grad_left + entry * grad_left_entry,
    )
    right, grad_right = right + entry * right_entry, grad_right + entry * grad_right_entry
    there, along = row < rows, tl.zeros((tall,), dtype=tl.float32)
    for tile in range(tiles):
        column = (part * tiles + tile) * wide + tl.arange(0, wide)
        here = column < columns
        gradient, worn = tl.zeros((tall, wide), dtype=tl.float32), tl.zeros((tall, wide), dtype=tl.float32)
        for start in range(0, rank, deep):
            k = start + tl.arange(0, deep)
            high, low = there[:, None] & (k < rank)[None, :], (k < rank)[:, None] & here[None, :]
            l = _read(left, row, left_row, k, left_rank, high)  # noqa: E741
            r = _read(right, k, right_rank, column, right_column, low)
            gl = _read(grad_left, row, grad_left_row, k, grad_left_rank, high)
            gr = _read(grad_right, k, grad_right_rank, column, grad_right_column, low)
            worn = tl.dot(l, r, worn, input_precision=precision)
            if quadratic:
                r = r - gr
            gradient = tl.dot(gl, r, gradient, input_precision=precision)
            gradient = tl.dot(l, gr, gradient, input_precision=precision)
        value = _read(weight, row, weight_row, column, weight_column, there[:, None] & here[None, :])
        score = gradient * (value + scaling * worn)
        score = score * score if square else tl.abs(score)
        along += tl.sum(score, axis=1)
        tl.store(column_parts + at * columns + column, tl.sum(score, axis=0), here)
    tl.store(row_parts + (part * (tl.num_programs(0) // row_blocks) + entry) * rows + row, along, there)


def triton_sums(worn: Worn, *, square: bool, quadratic: bool) -> Sums:
    """See ``low_rank_sums``; one launch, and one for each axis to add up what its programs found.

    Factors of a weight in half precision are multiplied in TF32, whose 11 bits are more than the gradients of such a
    model have; of others as exactly as fp32.
    """
    weight = stacked(worn.weight)
    assert worn.grad_left is not None
    assert worn.grad_right is not None
    factors = [stacked(each) for each in (worn.left, worn.right, worn.grad_left, worn.grad_right)]
    entries, rows, columns = weight.shape
    rank = factors[0].shape[2]
    row_blocks, tiles = -(-rows // TALL), -(-columns // WIDE)
    each = max(1, min(tiles, entries * row_blocks * tiles // PROGRAMS))
    parts = -(-tiles // each)
    row_parts = torch.empty(parts, entries, rows, device=weight.device)
    column_parts = torch.empty(entries, row_blocks, columns, device=weight.device)
    _kernel[(entries * row_blocks, parts)](
        weight, *factors, row_parts, column_parts, worn.scaling, rows, columns, row_blocks,
        *weight.stride(), *(step for factor in factors for step in factor.stride()), rank=rank, tiles=each,
        square=square, quadratic=quadratic, precision="tf32" if weight.element_size() < 4 else "tf32x3",
        tall=TALL, wide=WIDE, deep=32 if rank > 16 else 16, num_warps=4, num_stages=2,
    )  # fmt: skip
    return row_parts.sum(0), column_parts.sum(1)


@dataclass(frozen=True)
class _Ones:
    weight: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    grad_left: torch.Tensor
    grad_right: torch.Tensor
    scaling: float = 1.0


def try_out(device: str) -> None:
    """Run the kernel on ones. Raises whatever Triton raises, and RuntimeError if the sums are wrong."""
    tall, wide = (torch.ones(shape, device=device) for shape in ((2, 1), (1, 2)))
    rows, columns = triton_sums(_Ones(tall @ wide, tall, wide, tall, wide), square=True, quadratic=False)
    if not bool((rows == 32).all() and (columns == 32).all()):
        raise RuntimeError(f"its sums are {rows.tolist()} and {columns.tolist()}, and should be 32")
