"""One declaration an option: its default, type, limits and help stand on the field of its dataclass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from typing import Any, get_type_hints

METADATA = "option"


class Group(StrEnum):
    """Under which heading the command line shows an option."""

    REMOVE = "what to remove"
    RANK = "how to rank"
    TUNE = "how to tune"
    DATA = "data"
    OUTPUT = "output"
    ADVANCED = "advanced"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an option besides its name, type and default.

    ``least`` and ``most`` may be reached, ``above`` and ``below`` not. ``choices`` are the texts that it may be, or
    gives them when asked. ``noun``: what messages call it, where its name alone says too little. ``hint`` ends the
    message about a value outside the limits: what to write instead.

    The rest is for the command line, which has the option if it has a ``group``: ``common`` ones come first. ``flag``:
    how it is written (default: the field's name). ``metavar`` stands for the value. ``read`` makes the value of the
    words that were given, of a list of them if it may be ``repeated``; ``words`` is the type of these words where the
    field's own is another.
    """

    help: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    noun: str | None = None
    hint: str | None = None
    group: Group | None = None
    common: bool = False
    flag: str | None = None
    metavar: str | None = None
    read: Callable[[Any], Any] | None = None
    words: type | None = None
    repeated: bool = False

    @property
    def range(self) -> str:
        """The limits in words, such as ``at least 0 and below 1``; empty if there are none."""
        low = f"at least {_number(self.least)}" if self.least is not None else ""
        low = f"above {_number(self.above)}" if self.above is not None else low
        high = f"at most {_number(self.most)}" if self.most is not None else ""
        high = f"below {_number(self.below)}" if self.below is not None else high
        return " and ".join(part for part in (low, high) if part)

    def holds(self, value: float) -> bool:
        """Whether a number is within the limits."""
        low = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        return low and (self.most is None or value <= self.most) and (self.below is None or value < self.below)

    def allowed(self) -> tuple[str, ...]:
        """The texts that it may be; none if it may be any."""
        return self.choices() if callable(self.choices) else self.choices


def _number(value: float | None) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def option(default: Any = MISSING, *, help: str, factory: Any = MISSING, hash: bool | None = None, **facts: Any) -> Any:
    """A field of an options dataclass; ``facts`` are those of ``Facts``. Without a default it must be given."""
    metadata = {METADATA: Facts(help=help, **facts)}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata, hash=hash)
    return field(default=default, metadata=metadata, hash=hash)


@dataclass(frozen=True)
class Option:
    """An option as it was declared. ``type`` is the resolved annotation; ``default`` is MISSING if it must be given."""

    name: str
    type: Any
    default: Any
    facts: Facts

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.facts.noun or self.name

    @property
    def flag(self) -> str:
        """The word of the command line, ``--NAME``, or ``--yes/--no`` where both can be said."""
        return self.facts.flag or f"--{self.name.replace('_', '-')}"


_DECLARED: dict[type, tuple[Option, ...]] = {}


def declared(kind: type) -> tuple[Option, ...]:
    """The options of a dataclass in order; fields that were not declared by ``option`` are none."""
    if kind not in _DECLARED:
        hints = get_type_hints(kind)
        _DECLARED[kind] = tuple(
            Option(each.name, hints[each.name], _default(each), facts) for each, facts in _with_facts(fields(kind))
        )
    return _DECLARED[kind]


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _with_facts(all_fields: tuple[Field[Any], ...]) -> Iterator[tuple[Field[Any], Facts]]:
    for each in all_fields:
        if METADATA in each.metadata:
            yield each, each.metadata[METADATA]
