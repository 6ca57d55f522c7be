"""What a recovery left behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from passes.models import Adapter

FOLDER = "recovery"


@dataclass(frozen=True)
class Recovery:
    """The adapter that was trained on the compact model and merged into it."""

    name: ClassVar[str] = FOLDER

    adapter: Adapter

    def save(self, folder: Path) -> tuple[Path, ...]:
        """Write the adapter in peft's format, ``recovery`` in an output's folder."""
        return tuple(Path(FOLDER) / name for name in self.adapter.write(folder / FOLDER))

    @classmethod
    def load(cls, folder: Path) -> Recovery:
        """Read what ``save`` wrote. Raises MissingFileError."""
        return cls(Adapter.read(folder / FOLDER))
