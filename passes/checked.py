"""The numbers of an options dataclass are numbers: a string or a tensor is refused by name, before it is compared."""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from passes.errors import OptionError

KINDS: dict[str, tuple[type, str]] = {"int": (Integral, "a whole number"), "float": (Real, "a number")}
"""By annotation: what a value must be, and how that is said."""


def check_numbers(options: Any) -> None:
    """Raise OptionError for the first field declared ``int`` or ``float`` (or None) that holds something else."""
    for each in fields(options):
        first, _, rest = str(each.type).partition(" | ")
        value = getattr(options, each.name)
        if first not in KINDS or rest not in ("", "None") or (value is None and rest):
            continue
        kind, said = KINDS[first]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise OptionError(f"{each.name} must be {said}, got {value!r:.80} ({type(value).__name__})")
