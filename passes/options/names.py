"""Names of registered entries, known before the entries are: what stands behind a name may need torch."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points


class Names:
    """The names of one registry: lpc's own, those declared at run time, those of installed packages' entry points.

    ``group`` is that of the entry points, whose packages are not imported.
    """

    def __init__(self, own: Iterable[str], group: str) -> None:
        self.own, self._group = tuple(own), group
        self._declared: list[str] = []

    def declare(self, name: str) -> None:
        """Make a name known that an entry is registered by."""
        self._declared.append(name)

    def known(self) -> tuple[str, ...]:
        """All names."""
        points = (point.name for point in entry_points(group=self._group))
        return tuple(dict.fromkeys((*self.own, *self._declared, *points)))
