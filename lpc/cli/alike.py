"""Rows that say the same of every layer, as one row."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence

NUMBER = re.compile(r"\d+")


def alike(rows: Iterable[tuple[str, Hashable]]) -> dict[str, list[int]]:
    """The places of rows by what they are called together: those whose names differ in numbers alone and say the same.

    A row that is alone keeps its name.
    """
    found: dict[tuple[str, Hashable], list[int]] = {}
    names = []
    for place, (name, said) in enumerate(rows):
        names.append(name)
        found.setdefault((NUMBER.sub("*", name), said), []).append(place)
    called = {}
    for (pattern, _), places in found.items():
        last = names[places[-1]]
        several = pattern if len(places) > 1 else last
        called[several if several not in called else f"{names[places[0]]} to {last}"] = places
    return {f"{name} ({len(places)} alike)" if len(places) > 1 else name: places for name, places in called.items()}


def spread(values: Sequence[float], form: str) -> str:
    """One number, or the least and the greatest of several."""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"
