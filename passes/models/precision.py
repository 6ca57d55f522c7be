"""Precision: arithmetic in which rounding is small and known, and tensors compared bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch

from passes.errors import PostconditionError

WIDE = torch.float64
"""What is proven by numbers is computed in this dtype, in which no backend takes short cuts."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """No TF32 or bf16 in the place of fp32, and no autocast, inside the block; all is as it was afterwards."""
    cuda, cpu = cast(Any, torch.backends.cuda), cast(Any, torch.backends.mkldnn)
    matmuls = [cuda.matmul, cpu.matmul]
    was = [each.fp32_precision for each in matmuls]
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        for backend, precision in zip(matmuls, was, strict=True):
            stack.callback(setattr, backend, "fp32_precision", precision)
            backend.fp32_precision = "ieee"
        yield


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in ``WIDE``."""
    return tensor.detach().to(WIDE, copy=True)


@contextmanager
def widened(tensors: Iterable[torch.Tensor], value: Callable[[torch.Tensor], torch.Tensor] = wide) -> Iterator[None]:
    """The floating-point tensors hold other values inside the block, their own in ``WIDE``; afterwards what they held.

    The very same storage is put back: nothing is rounded, copied or aligned anew.
    """
    held = [(tensor, tensor.data) for tensor in tensors if tensor.is_floating_point()]
    try:
        for tensor, _ in held:
            tensor.data = value(tensor)
        yield
    finally:
        for tensor, data in held:
            tensor.data = data


def different_elements(actual: torch.Tensor, expected: torch.Tensor) -> int:
    """How many elements differ in any bit, of two tensors of one shape and dtype; NaN equals the same NaN."""
    actual, expected = actual.detach(), expected.detach().to(actual.device)
    if not actual.numel():
        return 0
    bits = _BITS[actual.dtype.itemsize]
    one, other = (each.contiguous().view(bits) for each in (actual, expected))
    return 0 if torch.equal(one, other) else int((one != other).sum())


def bit_difference(actual: torch.Tensor, expected: torch.Tensor) -> str | None:
    """How two tensors differ in dtype, shape or any bit, in words; None if they do not."""
    if actual.dtype != expected.dtype:
        return f"is {actual.dtype}, not {expected.dtype}"
    if actual.shape != expected.shape:
        return f"has shape {list(actual.shape)}, not {list(expected.shape)}"
    count = different_elements(actual, expected)
    return f"differs in {count:,} of {actual.numel():,} elements" if count else None


def constant_difference(one: torch.Tensor, other: torch.Tensor) -> str | None:
    """How two constants that a class computes differ, in words; of two dtypes, when both are in the coarser one.

    ``model.to(bfloat16)`` rounds constants such as rotary frequencies, and ``from_pretrained(dtype=...)`` does not.
    """
    coarse = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return bit_difference(one.to(coarse), other.to(coarse))


def digest(tensor: torch.Tensor) -> bytes:
    """sha256 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy().data).digest()


@contextmanager
def unchanged(name: str, tensors: Callable[[], Iterable[tuple[str, torch.Tensor]]]) -> Iterator[None]:
    """Raise PostconditionError, naming the pass and the tensor, if one of these has other bytes after the block."""
    before = {path: digest(tensor) for path, tensor in tensors()}
    yield
    for path, tensor in tensors():
        if digest(tensor) != before.get(path):
            raise PostconditionError(f"pass {name!r} changed {path}, which it has to leave as it is")
