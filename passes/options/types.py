"""The types that options have, and what a value of each must be."""

from __future__ import annotations

import math
import types
from dataclasses import is_dataclass
from enum import StrEnum
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from passes.errors import OptionError

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def main_type(kind: Any) -> Any:
    """The first member of a union that says something: not None, and not the text that an enum is also given as."""
    return next(each for each in alternatives(kind) if each is not type(None))


def takes_none(kind: Any) -> bool:
    """Whether the option may be left open."""
    return type(None) in alternatives(kind)


def enum_of(kind: Any) -> type[StrEnum] | None:
    """The enumeration among the alternatives."""
    return next((each for each in alternatives(kind) if isinstance(each, type) and issubclass(each, StrEnum)), None)


def dataclass_of(kind: Any) -> type | None:
    """The options dataclass among the alternatives."""
    return next((each for each in alternatives(kind) if isinstance(each, type) and is_dataclass(each)), None)


def texts_of(kind: Any) -> tuple[str, ...]:
    """The texts that a type itself allows: those of an enumeration or of ``Literal``."""
    enum = enum_of(kind)
    if enum is not None:
        return tuple(each.value for each in enum)
    literals = [each for each in alternatives(kind) if get_origin(each) is Literal]
    return tuple(text for each in literals for text in get_args(each))


def coerced(label: str, value: Any, kind: Any) -> Any:
    """The value as the type has it: a path of a text, a tuple of a list, a member of an enumeration of its text.

    Raises OptionError if it is of another type: a text or a flag where a number is asked for, and so on.
    """
    if value is None and takes_none(kind):
        return None
    members = [each for each in alternatives(kind) if each is not type(None)]
    if bool in members and isinstance(value, bool):
        return value
    nested = dataclass_of(kind)
    if nested is not None:
        if not isinstance(value, nested):
            raise _wrong(label, f"{nested.__name__}(...)", value)
        return value
    if int in members and float in members:  # an amount: its own check knows what it may be
        return value
    if enum_of(kind) is not None or texts_of(kind):
        return value if isinstance(value, str) else _refuse(label, "a text", value)
    main = members[0]
    if get_origin(main) is tuple:
        return _tuple(label, value, get_args(main)[0])
    return _plain(label, value, main)


def _plain(label: str, value: Any, kind: Any) -> Any:
    if kind is bool:
        return value if isinstance(value, bool) else _refuse(label, "True or False", value)
    if kind is int:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return value if whole else _refuse(label, "a whole number", value)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise _wrong(label, "a number", value)
        return value if math.isfinite(value) else _refuse(label, "a finite number", value)
    if kind is Path:
        return Path(value) if isinstance(value, str | PathLike) else _refuse(label, "a path", value)
    if kind is str:
        return value if isinstance(value, str) else _refuse(label, "a text", value)
    return value


def _tuple(label: str, value: Any, kind: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise _wrong(label, "a list", value)
    return tuple(_plain(f"each of {label}", each, kind) for each in value)


def _refuse(label: str, said: str, value: Any) -> Any:
    raise _wrong(label, said, value)


def _wrong(label: str, said: str, value: Any) -> OptionError:
    return OptionError(f"{label} must be {said}, got {value!r:.80} ({type(value).__name__})")


def read_text(label: str, text: str, kind: Any) -> Any:
    """The value that a word of the command line stands for. Raises OptionError, saying what would be understood."""
    main = main_type(kind)
    if main is int or main is float:
        try:
            return main(text)
        except ValueError:
            said = "a whole number" if main is int else "a number"
            raise OptionError(f"{label} must be {said}, got {text!r:.80}") from None
    if main is bool:
        if text.lower() not in BOOLEANS:
            raise OptionError(f"{label} must be yes or no, got {text!r:.80}")
        return BOOLEANS[text.lower()]
    return Path(text) if main is Path else text
