"""Names of layers and dimensions, taken apart."""

from __future__ import annotations

import re
from functools import cache

LAYER = re.compile(r"(.*?\.\d+)\.")


def layer_path(path: str) -> str:
    """The path of the layer that a module or parameter is in, up to its first number; without one, the path itself."""
    found = LAYER.match(f"{path}.")
    return found[1] if found else path


def layer_prefix(name: str) -> str | None:
    """``layers.3`` or ``encoder.layers.3`` of a dimension's name, None if it is in no layer."""
    before, layers, after = name.partition("layers.")
    number = after.partition(".")[0]
    return f"{before}{layers}{number}" if layers and number.isdigit() else None


def ends_in(path: str, end: str) -> bool:
    """Whether the last parts of a path are these; a part ``*`` stands for any number."""
    return _ending(end).fullmatch(path) is not None


@cache
def _ending(end: str) -> re.Pattern[str]:
    parts = r"\.".join(r"\d+" if part == "*" else re.escape(part) for part in end.split("."))
    return re.compile(rf"(?:.*\.)?{parts}")


LANE = re.compile(r"\.\d+$")
"""The end of the name of a dimension that is one of several in its layer: an expert, a KV group's query heads."""


NUMBER = re.compile(r"\.\d+\.")


def layerless(parameter: str) -> str:
    """A parameter's name without the number of its layer: alike for the same projection of every layer."""
    return NUMBER.sub(".", parameter, count=1)
