"""The one check of all options: types, limits, and the texts that are allowed."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, get_origin

from passes.errors import OptionError
from passes.options.option import Facts, Option, declared
from passes.options.types import coerced, enum_of, main_type, takes_none, texts_of

MOST_WHOLE = 10**9
"""The limit of whole numbers that declare none: what counts or places something is never more."""


def check(options: Any) -> None:
    """Check every declared option of a frozen dataclass, in its ``__post_init__``.

    What can be said in two ways is stored in one: a ``Path`` for a text, a tuple for a list, an enumeration's member
    for its text. Raises OptionError for the first that is of another type, outside its limits or not among its choices.
    """
    for each in declared(type(options)):
        given = getattr(options, each.name)
        value = checked(each, given)
        if value is not given:
            object.__setattr__(options, each.name, value)


def checked(option: Option, given: Any, label: str | None = None) -> Any:
    """A value, as the option stores it. Raises OptionError; messages call the option ``label``."""
    label = label or option.label
    value = coerced(label, given, option.type)
    if value is None and takes_none(option.type):
        return None
    if isinstance(value, str) and (texts := option.facts.allowed() or texts_of(option.type)):
        check_choice(label, value, texts)
        enum = enum_of(option.type)
        return enum(value) if enum else value
    several = get_origin(main_type(option.type)) is tuple
    for each in value if several else (value,):
        if several and option.facts.choices:
            check_choice(label, each, option.facts.allowed())
        _check_range(f"each of {label}" if several else label, each, option.facts)
    return value


def check_choice(label: str, value: str, texts: tuple[str, ...]) -> None:
    """Raise OptionError, naming the nearest, unless a text is one of those allowed."""
    if value not in texts:
        raise OptionError(f"unknown {label} {value!r}: choose one of {', '.join(texts)}{nearest(value, texts)}")


def nearest(value: str, texts: tuple[str, ...]) -> str:
    """`` (did you mean ...?)`` for a text that is almost one of those; else nothing."""
    found = get_close_matches(value, texts, 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _check_range(label: str, value: Any, facts: Facts) -> None:
    if facts.range and isinstance(value, int | float) and not isinstance(value, bool) and not facts.holds(value):
        hint = f": {facts.hint}" if facts.hint else ""
        raise OptionError(f"{label} must be {facts.range}, got {value}{hint}")
    endless = facts.most is None and facts.below is None and isinstance(value, int)
    if endless and value > MOST_WHOLE:
        raise OptionError(f"{label} must be at most {MOST_WHOLE:,}, got {value}")
