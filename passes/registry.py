"""Registries: entries by name, lpc's own, those registered at run time, and those of installed packages.

A package brings an entry by an entry point: ``NAME = "MODULE:OBJECT"`` under ``[project.entry-points."lpc.criteria"]``
in its ``pyproject.toml``. It is imported when its name is first asked for, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from passes.errors import OptionError, PluginError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Entries of one kind by name, in the order in which they came.

    ``noun`` is what messages call an entry, ``kind`` its class, ``group`` the group of entry points that packages add
    entries by. ``name_of``: the name that an entry itself gives, where it has one; it must be that of the entry point.
    """

    def __init__(self, noun: str, kind: type[T], group: str, name_of: Callable[[T], str] | None = None) -> None:
        self._noun, self._kind, self._group, self._name_of = noun, kind, group, name_of
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """Register an entry. Raises OptionError if the name is empty or taken, or the entry is of another class."""
        if not name or name in self._entries:
            state = "taken already" if name else "empty"
            raise OptionError(f"the {self._noun} name {name!r} is {state}: give yours another")
        if not isinstance(entry, self._kind):
            raise OptionError(f"a {self._noun} is a {self._kind.__name__}, and {name!r} is a {type(entry).__name__}")
        self._entries[name] = entry

    def named(self, name: str) -> T:
        """The entry of that name. Raises OptionError, listing the names, for an unknown one; PluginError."""
        if name not in self:
            raise OptionError(f"unknown {self._noun} {name!r}: choose one of {', '.join(self)}")
        return self[name]

    def __getitem__(self, name: str) -> T:
        """The entry of that name. Raises KeyError; PluginError if the package that brings it is broken."""
        if name not in self._entries:
            self._entries[name] = self._loaded(self._points[name])
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is such an entry; loads nothing."""
        return name in self._entries or name in self._points

    def __iter__(self) -> Iterator[str]:
        """The names; loads nothing."""
        return iter(dict.fromkeys((*self._entries, *self._points)))

    def __len__(self) -> int:
        """How many entries there are."""
        return len({*self._entries, *self._points})

    @contextmanager
    def restored(self) -> Iterator[None]:
        """What is registered inside of the block is taken back at its end."""
        before = dict(self._entries)
        try:
            yield
        finally:
            self._entries = before

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        """The entry points of the group by name. Raises PluginError where one has a name that is taken."""
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self._group):
            other = found.get(point.name)
            if point.name in self._entries or (other is not None and other.value != point.value):
                raise PluginError(
                    f"{_origin(point)} brings the {self._noun} {point.name!r}, a name that is taken already"
                    f"{f' by {_origin(other)}' if other else ''}: uninstall it, or give its entry point another name"
                )
            found[point.name] = point
        return found

    def _loaded(self, point: EntryPoint) -> T:
        """The object that an entry point names. Raises PluginError, naming package and object."""
        what = f"the {self._noun} {point.name!r} that {_origin(point)} brings ({self._group}: {point.value})"
        try:
            entry = point.load()
        except Exception as error:
            raise PluginError(f"{what} cannot be loaded: {type(error).__name__}: {error}") from error
        if not isinstance(entry, self._kind):
            raise PluginError(f"{what} must be a {self._kind.__name__}, and is a {type(entry).__name__}")
        if self._name_of is not None and self._name_of(entry) != point.name:
            raise PluginError(f"{what} calls itself {self._name_of(entry)!r}: the two names must be the same")
        return entry


def _origin(point: EntryPoint) -> str:
    return f"the package {point.dist.name!r}" if point.dist is not None else "a package"
