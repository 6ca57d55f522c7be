"""Short forms: common options that ``lpc.compress`` takes by themselves, each for a field of an options dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict, TypeVar

from lpc.options.data import DataOptions
from passes.errors import OptionError
from passes.options import (
    Budget,
    CompensateOptions,
    DtypeLike,
    Layout,
    LoraOptions,
    RecoverOptions,
    RunOptions,
    Target,
    TraceOptions,
    TuneOptions,
    declared,
    nearest,
)

T = TypeVar("T", RunOptions, TuneOptions, DataOptions)

OWNERS = (Target, RunOptions, TuneOptions, DataOptions)


class Short(TypedDict, total=False):
    """The short forms, for type checkers; None is as left out. A test holds them to the declarations."""

    budget: Budget | None
    layout: Layout | str | None
    multiple: int | None
    device: str | None
    dtype: DtypeLike | None
    seed: int | None
    batch_size: int | None
    samples: int | None
    steps: int | None
    learning_rate: float | None
    criterion: str | None
    sequence_length: int | None


def short_names(owner: type) -> tuple[str, ...]:
    """The options of a dataclass that have a short form: the common ones."""
    return tuple(each.name for each in declared(owner) if each.facts.common)


def check_short(given: Short) -> None:
    """Raise OptionError, naming the nearest, for a name that no short form has."""
    known = tuple(name for owner in OWNERS for name in short_names(owner))
    for name in given:
        if name not in known:
            raise OptionError(
                f"unknown option {name}{nearest(name, known)}: there are {', '.join(known)}, and the rest in target, "
                "run, tune, data_options, trace, lora, compensate and recover"
            )


KINDS: Mapping[str, type] = {
    "target": Target,
    "run": RunOptions,
    "tune": TuneOptions,
    "lora": LoraOptions,
    "trace": TraceOptions,
    "data_options": DataOptions,
    "recover": RecoverOptions,
    "compensate": CompensateOptions,
}


def check_kinds(given: Mapping[str, object]) -> None:
    """Raise OptionError for an argument that is none of its options' class, nor None, nor a bool for ``compensate``."""
    for name, value in given.items():
        kind = KINDS.get(name, object)
        if not (value is None or isinstance(value, kind) or (name == "compensate" and isinstance(value, bool))):
            made = f"lpc.{kind.__name__}"
            raise OptionError(f"{name} must be a {made}, got a {type(value).__name__}: write {name}={made}(...)")


def with_short(options: T, given: Short) -> T:
    """The options with what the short forms say of them. Raises OptionError."""
    return replace(options, **_of(type(options), given))


def target_from(target: Target | None, ratio: float | None, given: Short) -> Target:
    """The target that the arguments say. Raises OptionError if it is said twice."""
    short = _of(Target, given) | ({} if ratio is None else {"ratio": ratio})
    if target is None:
        return Target(**short)
    if short:
        raise OptionError(f"give either target or {' and '.join(short)}, not both")
    return target


def _of(owner: type, given: Short) -> dict[str, Any]:
    """Those of an options dataclass that say something."""
    names = short_names(owner)
    return {name: value for name, value in given.items() if name in names and value is not None}
