"""Where what the user names lies; looked up without torch."""

from __future__ import annotations

import re
from pathlib import Path

from passes.errors import MissingFileError, ModelError

HUB_NAME = re.compile(r"(\w[\w.-]*)/[\w.-]+")


def locate(name: str) -> Path | None:
    """The local folder of that name, or None for what can only be a hub name, ``owner/name``. Raises MissingFileError.

    What looks like a path (its first part is a folder here) is never looked up on the hub.
    """
    path = Path(name)
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise MissingFileError(f"there is no config.json in {path}; name a folder that save_pretrained wrote")
        return path
    if path.exists():
        raise ModelError(f"{path} is a file; name the folder that holds the model")
    hub_name = HUB_NAME.fullmatch(name)
    if hub_name is None or Path(hub_name[1]).is_dir():
        raise MissingFileError(f"there is no model folder {name} (a model on the hub is named owner/name)")
    return None


def check_file(path: Path, what: str) -> None:
    """Raise MissingFileError unless there is a file or folder of that name; ``what`` says what it is for."""
    if not path.exists():
        raise MissingFileError(f"no such file or folder: {path}: name {what}")
