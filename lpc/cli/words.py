"""The words of the command line, made of the declared options, and options made of the words again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer

from lpc.cli.help import GroupedCommand
from passes.errors import OptionError
from passes.options import Option, checked, declared, main_type, read_text, texts_of
from passes.ranks import launched

T = TypeVar("T")

METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
SHOWN_CHOICES = 4
"""Up to so many choices stand in the place of the value."""


@dataclass(frozen=True)
class Part:
    """An options dataclass of which a command has options: those with a group, or only those that it names.

    ``defaults`` are those of the command where they are others. ``if_asked``: nothing of it is done by default.
    """

    kind: type
    names: tuple[str, ...] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    if_asked: bool = False

    def options(self) -> Iterator[Option]:
        """In the order of declaration."""
        for option in declared(self.kind):
            if option.facts.group is not None and (self.names is None or option.name in self.names):
                yield option


@dataclass(frozen=True)
class Given:
    """What a user said: the command's arguments by name, and the options of each dataclass that were given.

    ``files`` are those whose text is an option. What a command enters into ``held`` is left when it ends.
    """

    arguments: Mapping[str, Any]
    options: Mapping[type, Mapping[str, Any]]
    files: Sequence[Path]
    held: ExitStack

    def of(self, kind: type) -> Mapping[str, Any]:
        """The options of a dataclass by field."""
        return self.options.get(kind, {})

    def make(self, kind: type[T], **more: Any) -> T:
        """The dataclass with what was given; ``more`` are fields that are made otherwise. Raises OptionError."""
        return kind(**{**self.of(kind), **more})


def add_command(
    app: typer.Typer,
    run: Callable[[Given], None],
    arguments: Sequence[inspect.Parameter],
    parts: Sequence[Part],
    *,
    shared: bool = False,
) -> None:
    """Add a command named as the function ``run``, with ``arguments`` and the options of all parts.

    ``shared``: all processes that a launcher started run it together; else the first one does it alone.
    """
    sources = {f"{part.kind.__name__}_{option.name}": (part, option) for part in parts for option in part.options()}
    parameters = [*arguments, *(_parameter(name, part, option) for name, (part, option) in sources.items())]

    def call(**words: Any) -> None:
        found: dict[type, dict[str, Any]] = {part.kind: dict(part.defaults) for part in parts}
        files: list[Path] = []
        for name, (part, option) in sources.items():
            said = words.pop(name)
            if said is not None and said != []:
                found[part.kind][option.name] = _value(option, said)
                if option.facts.words is Path:
                    files.append(Path(said))
        with ExitStack() as held:
            if launched()[0] and not shared:
                return
            run(Given(words, found, files, held))

    call.__doc__ = run.__doc__
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app.command(run.__name__, cls=GroupedCommand)(call)


def argument(
    name: str, kind: Any, metavar: str, help: str, default: Any = inspect.Parameter.empty
) -> inspect.Parameter:
    """A word that stands by itself, without a flag."""
    return _keyword(name, Annotated[kind, typer.Argument(metavar=metavar, help=help)], default)


def flags(option: Option) -> tuple[str, ...]:
    """The words of an option: ``--yes`` and ``--no``, or one."""
    return tuple(option.flag.split("/"))


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _words_type(option: Option) -> Any:
    return option.facts.words or main_type(option.type)


def _parameter(name: str, part: Part, option: Option) -> inspect.Parameter:
    facts, kind = option.facts, _words_type(option)
    default = part.defaults.get(option.name, option.default)
    default = ",".join(map(str, default)) if isinstance(default, tuple) and default else default
    shown = not (part.if_asked or isinstance(default, bool)) and isinstance(default, int | float | str | Path)
    text = f"{facts.help} [default: {default}]" if shown else facts.help
    text = f"{text} May be repeated." if facts.repeated else text
    said = typer.Option(
        option.flag,
        help=text,
        show_default=False,
        metavar=None if kind is bool else facts.metavar or _metavar(option, kind),
        rich_help_panel=f"{facts.group}{'' if facts.common else ' '}",
        autocompletion=_completing(option),
    )
    words: Any = bool | None if kind is bool else list[str] | None if facts.repeated else str | None
    return _keyword(name, Annotated[words, said], None)


def _completing(option: Option) -> Callable[[str], list[str]]:
    """What a shell may complete a word to, from what stands there already."""

    def completed(incomplete: str) -> list[str]:
        return [text for text in option.facts.allowed() or texts_of(option.type) if text.startswith(incomplete)]

    return completed


def _metavar(option: Option, kind: Any) -> str:
    texts = option.facts.allowed() or texts_of(option.type)
    if texts:
        return "|".join(texts) if len(texts) <= SHOWN_CHOICES else "NAME"
    return METAVARS.get(get_args(kind)[0] if get_origin(kind) is tuple else kind, "TEXT")


def _value(option: Option, words: Any) -> Any:
    """What the words of an option stand for. Raises OptionError, naming the flag."""
    facts, kind, label = option.facts, _words_type(option), flags(option)[0]
    if kind is bool:
        value = words
    elif facts.repeated:
        kind = get_args(kind)[0] if get_origin(kind) is tuple else kind
        value = [read_text(label, each, kind) for each in words]
    else:
        value = read_text(label, words, kind)
    if facts.read is not None:
        value = _read(label, words, facts.read, value)
    return checked(option, value, label)


def _read(label: str, words: Any, read: Callable[[Any], Any], value: Any) -> Any:
    """What a reader makes of a value; its message names the flag as well."""
    try:
        return read(value)
    except OptionError as error:
        told = " ".join(words) if isinstance(words, list) else words
        raise OptionError(f"{label} {told}: {error}") from None


def required(given: Given, kind: type) -> None:
    """Raise OptionError for the first option without a default that was not given."""
    for option in declared(kind):
        if option.default is MISSING and option.name not in given.of(kind):
            raise OptionError(f"{flags(option)[0]} is missing: {option.facts.help}")
