"""Matrices in few bits: codes in blocks along the inputs, a scale and perhaps a zero for each block.

The numbers are ``(code - zero) * scale``; onnxruntime's MatMulNBits and GatherBlockQuantized read them packed, the low
bits of a byte first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

CHUNK = 2**22
"""Numbers that are looked at at once, so that a wide matrix needs no copies of itself."""

SHRUNKEN = tuple(1.1 - 0.02 * step for step in range(26))
"""Shares of a block's range that ``searched`` tries: what is cut off costs less than what the rest gains."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A matrix (rows, columns) in blocks of its columns, the last one padded with zeros.

    ``codes``: uint8 (rows, blocks, block), each below 2 ** bits. ``scales``: fp32 (rows, blocks). ``zeros``: uint8
    (rows, blocks); None where all are 2 ** (bits - 1).
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bits: int
    columns: int

    @property
    def values(self) -> torch.Tensor:
        """The numbers that the codes stand for, fp32 (rows, columns)."""
        zeros = 2 ** (self.bits - 1) if self.zeros is None else self.zeros[..., None].float()
        values = (self.codes.float() - zeros) * self.scales[..., None]
        return values.flatten(1)[:, : self.columns]

    def packed(self) -> NDArray[np.uint8]:
        """The codes, (rows, blocks, block * bits / 8)."""
        return pack(self.codes, self.bits)

    def packed_zeros(self) -> NDArray[np.uint8] | None:
        """The zeros, (rows, blocks * bits / 8 rounded up); None where all are the middle."""
        if self.zeros is None:
            return None
        spare = -self.zeros.shape[1] % (8 // self.bits)
        return pack(torch.nn.functional.pad(self.zeros, (0, spare)), self.bits)


def pack(codes: torch.Tensor, bits: int) -> NDArray[np.uint8]:
    """Codes of 4 or 8 bits side by side in bytes along the last dimension."""
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    packed: NDArray[np.uint8] = codes.contiguous().numpy()
    return packed


def unpack(packed: NDArray[np.uint8], bits: int) -> torch.Tensor:
    """What ``pack`` packed."""
    codes = torch.from_numpy(np.ascontiguousarray(packed))
    if bits == 8:
        return codes
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)


def in_blocks(
    weight: torch.Tensor,
    bits: int,
    block: int,
    *,
    symmetric: bool,
    search: bool,
    importance: torch.Tensor | None = None,
) -> Blocks:
    """A matrix (rows, columns) to the nearest codes.

    With ``search`` the range of each block is the one of ``SHRUNKEN`` with the smallest squared error, in which a
    column counts by its ``importance`` (columns,), if that is given.
    """
    rows, columns = weight.shape
    count = math.ceil(columns / block)
    weights = None
    if importance is not None:
        weights = torch.nn.functional.pad(importance.float(), (0, count * block - columns)).view(1, count, block)
    step = max(1, CHUNK // max(1, count * block))
    ranges = _symmetric if symmetric else _asymmetric
    shares = SHRUNKEN if search else (1.0,)
    parts = []
    for at in range(0, rows, step):
        padded = torch.nn.functional.pad(weight[at : at + step].float(), (0, count * block - columns))
        parts.append(_best(padded.reshape(-1, count, block), bits, ranges, shares, weights))
    codes, scales, zeros = (torch.cat(each) for each in zip(*parts, strict=True))
    return Blocks(
        codes=codes,
        scales=scales[..., 0],
        zeros=None if symmetric else zeros[..., 0].to(torch.uint8),
        bits=bits,
        columns=columns,
    )


def ranges_of(blocks: torch.Tensor, bits: int, *, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros (..., 1) of whole blocks (..., block)."""
    return (_symmetric if symmetric else _asymmetric)(blocks, bits, 1.0)


Range = Callable[[torch.Tensor, int, float], tuple[torch.Tensor, torch.Tensor]]
"""Scales and zeros (rows, blocks, 1) for blocks, bits and the share of the range that codes reach over."""


def _symmetric(blocks: torch.Tensor, bits: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest number gets the lowest code, which has no opposite."""
    most, least = blocks.amax(-1, keepdim=True), blocks.amin(-1, keepdim=True)
    middle = float(2 ** (bits - 1))
    scales = torch.where(most.abs() > least.abs(), most, least) * (-share / middle)
    return _never_zero(scales), torch.full_like(scales, middle)


def _asymmetric(blocks: torch.Tensor, bits: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes from the least to the most, 0 among them."""
    most, least = blocks.amax(-1, keepdim=True).clamp_min(0), blocks.amin(-1, keepdim=True).clamp_max(0)
    top = 2**bits - 1
    scales = _never_zero((most - least) * (share / top))
    return scales, (-least * share / scales).round().clamp(0, top)


def _never_zero(scales: torch.Tensor) -> torch.Tensor:
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def _best(
    blocks: torch.Tensor, bits: int, ranges: Range, shares: tuple[float, ...], weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and zeros of the share with the least error, block by block."""
    scales, zeros = ranges(blocks, bits, shares[0])
    if len(shares) > 1:
        least = _error(blocks, bits, scales, zeros, weights)
        for share in shares[1:]:
            others = ranges(blocks, bits, share)
            error = _error(blocks, bits, *others, weights)
            better = error < least
            least = torch.where(better, error, least)
            scales, zeros = (torch.where(better, new, old) for new, old in zip(others, (scales, zeros), strict=True))
    return coded(blocks, bits, scales, zeros).to(torch.uint8), scales, zeros


def _error(
    blocks: torch.Tensor, bits: int, scales: torch.Tensor, zeros: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    squared = ((coded(blocks, bits, scales, zeros) - zeros) * scales - blocks) ** 2
    return (squared if weights is None else squared * weights).sum(-1, keepdim=True)


def coded(numbers: torch.Tensor, bits: int, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """The nearest codes, as floats."""
    return (numbers / scales + zeros).round().clamp(0, 2**bits - 1)
