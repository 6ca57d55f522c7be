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

COUNTS = re.compile(
    r"^(num_(hidden_layers|attention_heads|key_value_heads|heads)|n_(layers?|heads?|embd|positions)|hidden_size|d_model|"
    r"d_kv|head_dim|vocab_size|max_position_embeddings|(encoder|decoder)_(layers|attention_heads))$"
)
"""Entries that are at least 1, where they are given."""

ABOVE_ZERO = re.compile(r"^(rope_theta|rotary_emb_base|factor)$")
NOT_NEGATIVE = re.compile(r"(^|_)eps(ilon)?$")
STORED_AS = ("auto", "float32", "bfloat16", "float16", "float64")
"""What weights may be loaded as."""

SHARES = re.compile(r"dropout$|_pdrop$")
"""Entries between 0 and 1."""

MAX_DEPTH = 32


def check_declared(values: Any, where: str) -> None:
    """Raise ModelError naming the first entry of a configuration (JSON values) that no real model has."""
    _check_least(values, where)
    for name, value in _numbers(values, where, 0):
        limit = next((limit for pattern, limit in LIMITS if pattern.search(name)), LIMIT)
        if abs(value) > limit and (isinstance(value, int) or limit < LIMIT):
            said = value if abs(value) < 10**12 else f"{value:.1e}" if abs(value) < 1e300 else "a huge number"
            raise ModelError(f"{where} says {name} = {said}, more than any model has ({limit}): correct the entry")


def _check_least(values: Any, where: str) -> None:
    """The entries themselves and those of configurations inside; lists hold numbers of layers, which begin at 0."""
    for name, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, dict):
            if name not in ("id2label", "label2id"):
                _check_least(value, where)
            continue
        why = _why_not(str(name), value)
        if why is not None:
            raise ModelError(f"{where} says {name} = {value!r:.40}, which must be {why}: correct the entry")


def _why_not(name: str, value: Any) -> str | None:
    """What the value of an entry must be, or None if it is that, or if nothing is known of the entry."""
    counts, above, least, share = (bool(each.search(name)) for each in (COUNTS, ABOVE_ZERO, NOT_NEGATIVE, SHARES))
    if name == "return_dict" and value is False:
        return "true: no output has a name without it"
    if name in ("dtype", "torch_dtype") and value and str(value).removeprefix("torch.") not in STORED_AS:
        return f"one of {', '.join(STORED_AS)}"
    if value is None or not (counts or above or least or share):
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None if isinstance(value, list | tuple) else "a number"
    good = value >= 1 if counts else value > 0 if above else value >= 0 if least else 0 <= value <= 1
    if good:
        return None
    return "at least 1" if counts else "above 0" if above else "at least 0" if least else "between 0 and 1"


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
