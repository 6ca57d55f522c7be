"""Names of registered entries, known before the entries are: what stands behind a name may need torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any


class Names:
    """The names of one registry: lpc's own and those of installed packages' entry points, which are not imported.

    ``group`` is that of the entry points. Once the registry itself is there (``attach``), its names count.
    """

    def __init__(self, own: Iterable[str], group: str) -> None:
        self.own, self._group = tuple(own), group
        self._registry: Mapping[str, Any] | None = None

    def attach(self, registry: Mapping[str, Any]) -> None:
        """Take the names from the registry from now on."""
        self._registry = registry

    def known(self) -> tuple[str, ...]:
        """All names."""
        if self._registry is not None:
            return tuple(self._registry)
        return tuple(dict.fromkeys((*self.own, *(point.name for point in entry_points(group=self._group)))))


def names_in(text: str) -> tuple[str, ...]:
    """What stands between the commas of a text, without spaces around it; nothing between two of them is no name."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
