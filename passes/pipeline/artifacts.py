"""Artifacts: what passes leave behind beside the model. Each saves itself into an output, and loads itself."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol, Self


class Artifact(Protocol):
    """Something that belongs to a run's output, under a ``name`` that no other artifact of the run has."""

    name: ClassVar[str]

    def save(self, folder: Path) -> tuple[Path, ...]:
        """Write it into an output's folder; returns the files, relative to it."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read from an output's folder what ``save`` wrote. Raises MissingFileError or PlanError."""
