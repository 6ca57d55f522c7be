"""One declaration an option: its default, type, limits and help stand on the field of its dataclass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, get_type_hints

AUTO = "auto"
"""What an option says that lpc is to settle: the criterion that was measured best, the device that is there, ..."""

METADATA = "option"
COMMAND_LINE = ("group", "common", "flag", "metavar", "read", "words", "repeated")
"""The facts that are for the command line, and say which options have a short form."""


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

    ``overrides``: the dataclass to whose option of this name None leaves it.
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
    overrides: type | None = None

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


def option(
    default: Any = MISSING,
    *,
    help: str,
    factory: Any = MISSING,
    hash: bool | None = None,
    record: bool = True,
    **facts: Any,
) -> Any:
    """A field of an options dataclass; ``facts`` are those of ``Facts``. Without a default it must be given.

    ``record``: whether it stands in records of a run; what changes no result does not.
    """
    metadata = {METADATA: Facts(help=help, **facts), "record": record}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata, hash=hash)
    return field(default=default, metadata=metadata, hash=hash)


def as_in(owner: type, name: str, *, default: Any = MISSING, **facts: Any) -> Any:
    """A field that another options dataclass declares: its default, limits and help stand there alone.

    It is no option of the command line, and no short form. ``facts`` are those that differ.
    """
    known = _field(owner, name)
    bare = {each.name: each.default for each in fields(Facts) if each.name in COMMAND_LINE}
    metadata = {**known.metadata, METADATA: replace(known.metadata[METADATA], **{**bare, **facts})}
    return field(default=_default(known) if default is MISSING else default, metadata=metadata)


def left_to(owner: type, name: str, more: str) -> Any:
    """As ``as_in``, but None by default, which leaves it to the owner's; ``more`` ends the help, saying so."""
    help = f"{_field(owner, name).metadata[METADATA].help} {more}"
    return as_in(owner, name, default=None, help=help, overrides=owner)


def _field(owner: type, name: str) -> Field[Any]:
    return next(each for each in fields(owner) if each.name == name)


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
