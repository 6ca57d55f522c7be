"""LoRAPrune's element scores summed along both axes of a weight, without a matrix of its size.

Of a weight W [rows, columns] that wears s·L·R of rank r, with the gradients gL of L and gR of R, the scores are

    ((gL·R + L·gR − gL·gR) ⊙ (W + s·L·R))²        or its absolute value; the third term only if ``quadratic``

The bracket is one product of rank 2r, [gL L]·[R − gR; gR], so that an element costs its own reading and a few products
of short rows. Sums are fp32. On a CUDA device a Triton kernel reads each weight once; elsewhere, and where Triton does
not work, torch works on a few rows at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import cache
from importlib.util import find_spec
from typing import Protocol, TypeAlias

import torch

logger = logging.getLogger(__name__)

HOST_ELEMENTS = 1 << 18
"""Elements of a weight that torch works on at a time on a processor: what stays in its cache."""

DEVICE_ELEMENTS = 1 << 24
"""The same on any other device: 64 MiB in fp32, of which there are at most three."""


class Worn(Protocol):
    """A weight [rows, columns] or [entries, rows, columns] with the factors that it wears in the same layout."""

    @property
    def weight(self) -> torch.Tensor:
        """W."""
        ...

    @property
    def left(self) -> torch.Tensor:
        """L [..., rows, r]."""
        ...

    @property
    def right(self) -> torch.Tensor:
        """R [..., r, columns]."""
        ...

    @property
    def grad_left(self) -> torch.Tensor | None:
        """The gradient of L."""
        ...

    @property
    def grad_right(self) -> torch.Tensor | None:
        """The gradient of R."""
        ...

    @property
    def scaling(self) -> float:
        """s."""
        ...


class Way(StrEnum):
    """How the sums are formed."""

    TORCH = "torch"
    COMPILED = "compiled"
    """As ``TORCH``, with what is done to each element fused by torch.compile."""
    TRITON = "triton"


Sums: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""The sums over columns [entries, rows] and over rows [entries, columns], fp32 where the weight is."""


@torch.no_grad()
def low_rank_sums(worn: Worn, *, square: bool, quadratic: bool, way: Way | None = None) -> Sums:
    """The scores of a weight's elements, summed. Nothing waits for the device.

    ``way`` None: Triton on a CUDA device where it is installed and works, else torch. Raises RuntimeError if there are
    no gradients.
    """
    if worn.grad_left is None or worn.grad_right is None:
        raise RuntimeError("there are no gradients: scores are read after the backward pass")
    if way is None and worn.weight.device.type == "cuda" and triton_works():
        way = Way.TRITON
    if way is Way.TRITON:
        from passes.algebra.triton_sums import triton_sums

        return triton_sums(worn, square=square, quadratic=quadratic)
    return _torch_sums(worn, _compiled() if way is Way.COMPILED else _window, square, quadratic)


@cache
def triton_works() -> bool:
    """Whether Triton is installed and can compile for this machine's CUDA device; asked once, and said if it cannot."""
    if find_spec("triton") is None or not torch.cuda.is_available():
        return False
    from passes.algebra.triton_sums import try_out

    try:
        try_out("cuda")
    except Exception as error:  # noqa: BLE001 - a compiler that is missing or fails raises anything
        logger.warning("Triton does not work here, scores are formed by torch, which is slower: %s", error)
        return False
    return True


def windows(shape: torch.Size, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Entries and rows of a weight [entries, rows, columns] that fit a device's cache or memory, one after another."""
    entries, height, width = shape
    at_once = HOST_ELEMENTS if device.type == "cpu" else DEVICE_ELEMENTS
    tall = max(1, min(height, at_once // width))
    deep = max(1, at_once // (width * tall))
    for first in range(0, entries, deep):
        for top in range(0, height, tall):
            yield slice(first, min(first + deep, entries)), slice(top, min(top + tall, height))


Window: TypeAlias = Callable[..., Sums]


def _torch_sums(worn: Worn, form: Window, square: bool, quadratic: bool) -> Sums:
    assert worn.grad_left is not None
    assert worn.grad_right is not None
    weight = stacked(worn.weight)
    left, right, grad_left, grad_right = (
        stacked(each).float() for each in (worn.left, worn.right, worn.grad_left, worn.grad_right)
    )
    tall, wide = torch.cat([grad_left, left], 2), torch.cat([right - grad_right if quadratic else right, grad_right], 1)
    rows = torch.empty(weight.shape[:2], device=weight.device)
    columns = torch.zeros(weight.shape[0], weight.shape[2], device=weight.device)
    for window in windows(weight.shape, weight.device):
        entries = window[0]
        rows[window], found = form(
            weight[window], left[window], right[entries], tall[window], wide[entries], worn.scaling, square
        )
        columns[entries] += found
    return rows, columns


def _window(
    weight: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    tall: torch.Tensor,
    wide: torch.Tensor,
    scaling: float,
    square: bool,
) -> Sums:
    scores = torch.baddbmm(weight.float(), left, right, alpha=scaling).mul_(tall @ wide)
    scores = scores.square_() if square else scores.abs_()
    return scores.sum(2), scores.sum(1)


@cache
def _compiled() -> Window:
    return torch.compile(_window, dynamic=True)


def stacked(tensor: torch.Tensor) -> torch.Tensor:
    """A matrix as a stack [1, rows, columns]; a stack as it is."""
    return tensor if tensor.dim() == 3 else tensor.unsqueeze(0)
