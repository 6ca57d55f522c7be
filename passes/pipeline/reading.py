"""Values that ``plain`` made, as the dataclasses that they were."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints


def read_as(kind: Any, value: Any) -> Any:
    """What ``plain`` made of a value of this kind, as it was: dataclasses, tuples and mappings of them, numbers, text.

    Raises TypeError or ValueError for what is no such thing.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if value is None or kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return read_as(next(each for each in inner if each is not type(None)), value)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: read_as(hints[name], each) for name, each in dict(value).items()})  # type: ignore[operator]
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(read_as(inner[0], each) for each in value)
    if origin is tuple:
        return tuple(read_as(part, each) for part, each in zip(inner, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: read_as(inner[1], each) for key, each in value.items()}
    return value
