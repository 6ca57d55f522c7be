"""Options as plain values and back, as a file has them; and the JSON schema of such a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from passes.errors import OptionError
from passes.options.check import nearest
from passes.options.option import Option, declared
from passes.options.types import alternatives, dataclass_of, main_type, takes_none, texts_of

T = TypeVar("T")

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string", type(None): "null"}


def to_dict(options: Any) -> dict[str, Any]:
    """All options as plain values: numbers, texts, lists, and dicts for options inside of options."""
    return {each.name: _plain(getattr(options, each.name)) for each in fields(options)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """The options that ``to_dict`` wrote, or a part of them: what is left out is as by default.

    Raises OptionError for an unknown key, naming the nearest known one, for a value that the dataclass refuses, and
    where options are inside of options for a value that is no mapping; ``where`` stands in front of the names.
    """
    known = {each.name: each for each in declared(kind)}
    made = {}
    for name, value in values.items():
        if name not in known:
            raise OptionError(
                f"unknown option {where}{name}{nearest(name, tuple(known))}: there are {', '.join(known)}"
            )
        inner = dataclass_of(known[name].type)
        if inner is None or value is None or isinstance(value, bool):
            made[name] = value
        elif isinstance(value, Mapping):
            made[name] = from_dict(inner, value, f"{where}{name}.")
        else:
            raise OptionError(f"{where}{name} must hold options ({', '.join(_names(inner))}), got {value!r:.80}")
    missing = [each.name for each in known.values() if each.default is MISSING and each.name not in values]
    if missing:
        raise OptionError(f"{where}{missing[0]} is missing: {known[missing[0]].facts.help}")
    return kind(**made)


def _names(kind: type) -> list[str]:
    return [each.name for each in declared(kind)]


def schema(kind: type) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of what ``from_dict`` takes."""
    properties = {each.name: _property(each) for each in declared(kind)}
    required = [each.name for each in declared(kind) if each.default is MISSING]
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": required} if required else found


def _property(option: Option) -> dict[str, Any]:
    found: dict[str, Any] = {"description": option.facts.help}
    inner, default = dataclass_of(option.type), option.default
    if inner is not None:
        plain = [{"type": JSON_TYPES[each]} for each in alternatives(option.type) if each in JSON_TYPES]
        return {**found, **({"anyOf": [schema(inner), *plain]} if plain else schema(inner))}
    if default is not MISSING:
        found["default"] = _plain(default)
    main = main_type(option.type)
    if texts := (option.facts.allowed() or texts_of(option.type)):
        rule = {"enum": [*texts, None] if takes_none(option.type) else list(texts)}
        return {**found, "type": "array", "items": rule} if get_origin(main) is tuple else {**found, **rule}
    if get_origin(main) is Mapping:
        return {**found, "type": "object"}
    if get_origin(main) is tuple:
        item = {"type": JSON_TYPES.get(get_args(main)[0], "string"), **_limits(option)}
        return {**found, "type": ["array", "null"] if takes_none(option.type) else "array", "items": item}
    return {**found, "type": _json_type(option.type), **_limits(option)}


def _json_type(kind: Any) -> str | list[str]:
    names = list(dict.fromkeys(JSON_TYPES.get(each, "string") for each in alternatives(kind)))
    return names[0] if len(names) == 1 else names


def _limits(option: Option) -> dict[str, float]:
    words = {"least": "minimum", "most": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}
    found = {word: getattr(option.facts, name) for name, word in words.items()}
    return {word: limit for word, limit in found.items() if limit is not None}
