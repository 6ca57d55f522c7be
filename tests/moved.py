"""For the tests of vendor files: a failure says which name of which library has moved."""

from __future__ import annotations

from importlib.metadata import version

import pytest


class Named:
    """Whatever goes wrong inside the block is said to be the library's name that moved, and where to mend it."""

    def __init__(self, library: str, name: str, mend: str) -> None:
        self.said = f"{library} {version(library)} has moved {name}: mend {mend}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            pytest.fail(f"{self.said} ({error!r})")
