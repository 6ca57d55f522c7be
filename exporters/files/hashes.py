"""What files hold, in short: their hashes, a text that says its own, and files held against what was said of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from exporters.files.folder import sha256
from passes.errors import PostconditionError

SEAL = "seal"

Facts: TypeAlias = "dict[str, dict[str, str | int]]"
"""``sha256`` and ``bytes`` of files, by their names relative to a folder."""


def hashes(folder: Path, names: Iterable[str]) -> Facts:
    """The facts of files of a folder."""
    paths = {name: folder / name for name in sorted(names)}
    return {name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in paths.items()}


def sealed(values: Mapping[str, Any]) -> str:
    """Values as JSON text that ends with the hash of all before, so that a change of any of its bytes shows."""
    rest = {name: value for name, value in values.items() if name != SEAL}
    digest = hashlib.sha256(json.dumps(rest, indent=1).encode()).hexdigest()
    return json.dumps({**rest, SEAL: digest}, indent=1) + "\n"


def check_seal(path: Path, values: Mapping[str, Any]) -> bool:
    """Whether a file, which holds ``values``, has a seal. Raises PostconditionError if it has and does not fit it."""
    if SEAL not in values:
        return False
    if path.read_bytes() != sealed(values).encode():
        raise PostconditionError(f"{path.name} was changed after lpc wrote it: its seal does not fit it")
    return True


def check_files(folder: Path, said: Mapping[str, Any]) -> int:
    """The bytes of a folder's files. Raises PostconditionError for the first one that is not what was said of it.

    Sizes are looked at first, and no name leads out of the folder.
    """
    facts = {name: _facts(name, fact) for name, fact in sorted(said.items())}
    for name, (_, size) in facts.items():
        path = folder / name
        if not path.is_file():
            raise PostconditionError(f"{name} is missing, or is no file")
        if path.stat().st_size != size:
            raise PostconditionError(f"{name} has {path.stat().st_size:,} bytes, {size:,} were written")
    for name, (digest, _) in facts.items():
        found = sha256(folder / name)
        if found != digest:
            raise PostconditionError(f"{name} was changed: its sha256 is {found[:12]}…, {digest[:12]}… was written")
    return sum(size for _, size in facts.values())


def _facts(name: str, fact: object) -> tuple[str, int]:
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise PostconditionError(f"{name!r} names a file outside of the folder")
    match fact:
        case {"sha256": str(digest), "bytes": int(size)}:
            return digest, size
    raise PostconditionError(f"what is said of {name} is no sha256 and size: {fact!r}")
