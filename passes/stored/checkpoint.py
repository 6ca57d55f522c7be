"""What lies in a checkpoint folder, by the headers of its files alone: no tensor is read, nothing is unpickled.

Headers are parsed by the safetensors library, which also holds them against the size of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from passes.errors import MissingFileError, ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
MAX_JSON_BYTES = 64 << 20
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The dtypes that weights are computed in: torch's names by those of safetensors."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, by its header; ``dtype`` is safetensors' name, such as ``BF16``."""

    shape: tuple[int, ...]
    dtype: str


def is_file(path: Path) -> bool:
    """Whether there is a regular file of that name: no device or pipe, which would never end, no name that none has."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a stranger's. Raises MissingFileError or ModelError naming the file."""
    values = _parsed(path)
    if not isinstance(values, dict):
        raise ModelError(f"{path} cannot be loaded: it holds no JSON object but {type(values).__name__}")
    return values


def read_json_list(path: Path) -> list[Any]:
    """A JSON list; likewise."""
    values = _parsed(path)
    if not isinstance(values, list):
        raise ModelError(f"{path} cannot be loaded: it holds no JSON list but {type(values).__name__}")
    return values


def _parsed(path: Path) -> Any:
    if not is_file(path):
        raise MissingFileError(f"there is no file {path}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path} has {path.stat().st_size >> 20} MiB, more than any such file: it is not read")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        check_fetched(path)
        raise ModelError(f"{path} cannot be loaded, it is no JSON: {str(error) or type(error).__name__}") from error


POINTER = b"version https://git-lfs"


def check_fetched(path: Path) -> None:
    """Raise ModelError if a file is git-lfs's pointer to another one, which was not fetched."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ModelError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder")


def stored_tensors(folder: Path, weights: object = None) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint folder by name; ``weights`` is the file or index, by default the usual one.

    Raises ModelError if there is none, if an index names a file that is missing or lies outside of the folder, and for
    a file that is cut off or is no safetensors file.
    """
    return {name: tensor for file in _weight_files(folder, weights) for name, tensor in headers(file).items()}


def stored_files(folder: Path, weights: object = None) -> dict[str, Path]:
    """The file of each tensor of a checkpoint folder, by name. Raises what ``stored_tensors`` raises."""
    return {name: file for file in _weight_files(folder, weights) for name in headers(file)}


def headers(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name. Raises MissingFileError or ModelError."""
    if not is_file(path):
        raise MissingFileError(
            f"the weights of {path.parent} cannot be loaded: {path.name[:200]} is missing, or is no file"
        )
    found = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = file.get_slice(name)
                found[name] = StoredTensor(tuple(part.get_shape()), str(part.get_dtype()))
    except (SafetensorError, OSError) as error:
        check_fetched(path)
        raise ModelError(
            f"the weights of {path.parent} cannot be loaded: {path.name} ({path.stat().st_size} bytes) is cut off or "
            f"no safetensors file: {error}"
        ) from error
    return found


def _weight_files(folder: Path, weights: object) -> list[Path]:
    if weights is None:
        weights = next((name for name in (WEIGHTS, INDEX) if (folder / name).is_file()), None)
    if weights is None:
        pickled = next((name for name in PICKLES if (folder / name).is_file()), None)
        why = f"; {pickled} would have to be unpickled, which runs what is in it" if pickled else ""
        raise ModelError(
            f"the weights of {folder} cannot be loaded: there is no {WEIGHTS}{why}: write it with save_pretrained"
        )
    if not isinstance(weights, str):
        raise ModelError(f"config.json of {folder} says transformers_weights = {weights!r:.60}: write the file's name")
    if not weights.endswith(".json"):
        return [_inside(folder, weights)]
    entries: Mapping[str, Any] = read_json(_inside(folder, weights)).get("weight_map") or {}
    if not isinstance(entries, Mapping) or not entries or not all(isinstance(name, str) for name in entries.values()):
        raise ModelError(f"the weights of {folder} cannot be loaded: {weights} has no weight_map of files by tensor")
    return [_inside(folder, name) for name in sorted(set(entries.values()))]


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder. A link may lead out of it, as in the hub's cache, but a name may not."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ModelError(f"the weights of {folder} cannot be loaded: {name!r} names a file outside of the folder")
    return folder / name
