"""Kept: how many units, or which ones, stay in each dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Kept: TypeAlias = Mapping[str, int | Sequence[int]]
"""How many units a dimension keeps, or which ones, by the dimension's name (absent: all)."""


def count_of(amount: int | Sequence[int]) -> int:
    """How many units an entry of ``Kept`` keeps."""
    return len(amount) if isinstance(amount, Sequence) else amount
