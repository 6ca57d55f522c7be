"""What a configuration may declare: numbers that no real model reaches are refused before anything is made of them.

Even a model without weights costs memory and time by its sizes: an index a channel, a module a layer, a label a class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from passes.errors import ModelError

LIMITS: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern), limit)
    for pattern, limit in (
        (r"(^|_)(layers?|layers_block|blocks?|depths?)$", 256),
        (r"heads?$|groups$", 1 << 12),
        (r"experts?(_|$)", 1 << 12),
        (r"intermediate|ffn|inner|d_ff", 1 << 20),
        (r"hidden_size$|n_embd|d_model|d_kv|embed_dim|embedding_size|head_dim|word_embed|rank$", 1 << 17),
        (r"image_size|patch_size|num_channels", 1 << 13),
        (r"vocab|labels", 1 << 22),
        (r"window|length|cache|token_id|seed|theta|base|freq", 1 << 62),
    )
)
"""The largest value of a whole number by its entry's name; the first pattern that is found counts."""

LIMIT = 1 << 25
"""That of all other whole numbers, positions among them."""

MAX_DEPTH = 32


def check_declared(values: Any, where: str) -> None:
    """Raise ModelError naming the first entry of a configuration (JSON values) that is larger than any real model's."""
    for name, value in _numbers(values, where, 0):
        limit = next((limit for pattern, limit in LIMITS if pattern.search(name)), LIMIT)
        if abs(value) > limit and (isinstance(value, int) or limit < LIMIT):
            said = value if abs(value) < 10**12 else f"{value:.1e}" if abs(value) < 1e300 else "a huge number"
            raise ModelError(f"{where} says {name} = {said}, more than any model has ({limit}): correct the entry")


def _numbers(values: Any, where: str, depth: int, name: str = "") -> Iterator[tuple[str, int | float]]:
    if depth > MAX_DEPTH:
        raise ModelError(f"{where} is nested more than {MAX_DEPTH} levels deep, which no configuration is")
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _numbers(value, where, depth + 1, str(key))
    elif isinstance(values, list):
        for value in values:
            yield from _numbers(value, where, depth + 1, name)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield name, values
