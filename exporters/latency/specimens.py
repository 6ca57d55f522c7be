"""Specimens: the small ONNX models that are timed, which widths they have, and how many blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from exporters.latency.curve import Curve
from passes.graph import Width

MAX_BLOCKS = 64
CACHES = 2
"""Weights of a specimen, in sizes of the processor's last-level cache: so much that none of them stay there."""

Key = tuple[str, int]
"""Which specimen: a width and its count, or a name of the route's own and a number."""


@dataclass(frozen=True)
class Specimen:
    """A small model to time; ``write`` writes ``model.onnx`` with its weights into an empty folder.

    ``costly``: that takes so long that the files are kept while others are timed.
    """

    key: Key
    write: Callable[[Path], None]
    costly: bool = False


@dataclass(frozen=True)
class Terms:
    """What the table is made of: the constant, and a curve a width, in seconds."""

    constant: float
    curves: Mapping[str, Curve]


def blocks_for(block_bytes: int, model_bytes: int, cache_bytes: int) -> int:
    """Blocks of a specimen: together larger than the processor's cache, or as large as the model if that is smaller.

    A decode step reads every weight once, from memory or, in a model that fits there, from the cache; a single small
    block that is run again and again would always find its weights in the cache.
    """
    wanted = min(CACHES * cache_bytes, model_bytes)
    return max(1, min(MAX_BLOCKS, math.ceil(wanted / max(1, block_bytes))))


def head_counts(width: Width, most: int) -> tuple[int, ...]:
    """Counts of heads or experts to time: all if they are at most ``most``, else so many, evenly, with 1 and all."""
    if width.size <= most:
        return tuple(range(1, width.size + 1))
    return tuple(sorted({1 + round(step * (width.size - 1) / (most - 1)) for step in range(most)}))


def channel_counts(width: Width, sixteenths: tuple[float, ...]) -> tuple[int, ...]:
    """Counts of channels to time: these sixteenths of all, on multiples of 16, or of 8 in narrow models."""
    step = 16 if width.size >= 256 else min(8, width.size)
    rounded = {max(step, round(width.size * part / 16 / step) * step) for part in sixteenths}
    return tuple(sorted({*(count for count in rounded if count < width.size), width.size}))
