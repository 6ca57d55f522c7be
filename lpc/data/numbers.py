"""Numbers in rows: what the user gave as arrays, lists or tensors, as tensors that lost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from passes.errors import DataError

__all__ = ["TOKENS", "as_tensor"]

TOKENS = ("input_ids", "decoder_input_ids")
"""Inputs that are token ids."""

LARGEST = np.iinfo(np.int64).max


def as_tensor(where: str, name: str, value: Any) -> torch.Tensor:
    """A value of a row as a tensor: whole numbers and truth values as int64, others as float32.

    A tensor of floating point keeps its type. Raises DataError, naming the place, for what is ragged or no number, a
    number that is not finite or that the type cannot hold, and token ids that are not whole.
    """
    found = _checked(where, name, value) if isinstance(value, torch.Tensor) else _converted(where, name, value)
    if name in TOKENS and found.numel() and (found.is_floating_point() or _is_bool(value)):
        raise DataError(f"{where}: {name} holds {_kind(value, found)}: token ids are whole numbers")
    if found.is_floating_point() and not bool(torch.isfinite(found).all()):
        raise DataError(f"{where}: {name} holds a number that is not finite (NaN, infinite, or too large for float32)")
    return found


def _checked(where: str, name: str, value: torch.Tensor) -> torch.Tensor:
    if value.is_complex() or value.is_quantized or value.is_meta:
        raise DataError(f"{where}: {name} is a tensor of {value.dtype}, not of plain numbers")
    return value if value.is_floating_point() else value.to(torch.int64)


def _converted(where: str, name: str, value: Any) -> torch.Tensor:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: {name} is ragged ({error})") from error
    except RecursionError as error:
        raise DataError(f"{where}: {name} is nested too deeply") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: {name} is a {type(value).__name__}, not numbers: tokenize or preprocess it first")
    if array.dtype.kind == "u" and array.size and int(array.max()) > LARGEST:
        raise DataError(f"{where}: {name} holds {int(array.max())}, a number beyond 64 bits")
    if array.dtype.kind != "f":
        return torch.from_numpy(array.astype(np.int64))
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and that is refused
        return torch.from_numpy(array.astype(np.float32))


def _is_bool(value: Any) -> bool:
    """Whether some of the numbers are truth values, which numpy would turn into 0 and 1 beside whole numbers."""
    if isinstance(value, torch.Tensor):
        return value.dtype is torch.bool
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind == "b"
    if isinstance(value, Sequence):
        return any(isinstance(item, bool | np.bool_) for item in value)
    return isinstance(value, bool)


def _kind(value: Any, found: torch.Tensor) -> str:
    return "fractions or floats" if found.is_floating_point() else "truth values"
