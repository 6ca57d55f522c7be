"""Where what the user names lies; looked up without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passes.errors import MissingFileError, ModelError

HUB_NAME = re.compile(r"(\w[\w.-]*)/[\w.-]+")
MODEL_FILES = ("config.json", "adapter_config.json")
"""A folder with one of these is one of a model, or of an adapter."""


@dataclass(frozen=True)
class Place:
    """Where a model lies: the name as the user gave it, its folder (None: on the hub), its GGUF file in the folder."""

    name: str
    folder: Path | None
    gguf: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """For transformers' ``from_pretrained``, the place first."""
        found: dict[str, Any] = {
            "pretrained_model_name_or_path": str(self.folder or self.name),
            "local_files_only": self.folder is not None,
        }
        return {**found, "gguf_file": self.gguf} if self.gguf else found


def find_place(name: str) -> Place:
    """Where the model of that name lies: a folder, a GGUF file, or the hub. Raises MissingFileError, ModelError.

    What looks like a path (its first part is a folder here) is never looked up on the hub.
    """
    path = Path(name)
    if is_there(path, "is_dir"):
        if not any((path / file).is_file() for file in MODEL_FILES):
            raise MissingFileError(f"there is no config.json in {path}; name a folder that save_pretrained wrote")
        return Place(name, path)
    if is_there(path, "exists"):
        if path.suffix.lower() == ".gguf" and path.is_file():
            return Place(name, path.parent, path.name)
        raise ModelError(f"{path} is a file; name the folder that holds the model, or a .gguf file")
    hub_name = HUB_NAME.fullmatch(name)
    if hub_name is None or Path(hub_name[1]).is_dir():
        raise MissingFileError(f"there is no model folder {name[:500]} (a model on the hub is named owner/name)")
    return Place(name, None)


def is_there(path: Path, question: str = "exists") -> bool:
    """``path.exists()``, ``path.is_dir()`` or the like; False for a name that no file can have."""
    try:
        return bool(getattr(path, question)())
    except (OSError, ValueError):
        return False


def check_file(path: Path, what: str) -> None:
    """Raise MissingFileError unless there is a file or folder of that name; ``what`` says what to name instead."""
    if not is_there(path):
        raise MissingFileError(f"no such file or folder: {path}: name {what}")
