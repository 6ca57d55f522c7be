"""At the door: what a model's folder is refused for by its files alone, before torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from passes.errors import ModelError, PlanError
from passes.places import find_place
from passes.stored.checkpoint import MAX_JSON_BYTES, read_json, stored_tensors
from passes.stored.declared import check_declared

CONFIG, GENERATION, ADAPTER = "config.json", "generation_config.json", "adapter_config.json"


def check_model(name: str, *, weights: bool) -> None:
    """Raise what a model is refused for by its name, its configuration, and with ``weights`` the headers of its files.

    Raises ModelError, MissingFileError. Nothing more is said of a GGUF file, a hub name, or an adapter's folder.
    """
    place = find_place(name)
    folder = place.folder
    if folder is None or place.gguf is not None or (folder / ADAPTER).is_file():
        return
    values = read_config(folder)
    if (folder / GENERATION).is_file():
        read_json(folder / GENERATION)
    if weights:
        stored_tensors(folder, values.get("transformers_weights"))


def check_plan(path: Path) -> None:
    """Raise PlanError if a plan's file, where there is one of a usual size, is no JSON."""
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return
    try:
        read_json(path)
    except ModelError as error:
        raise PlanError(f"this is no plan that lpc wrote: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The entries of a folder's ``config.json``; raises MissingFileError, or ModelError for what no model says."""
    path = folder / CONFIG
    values = read_json(path)
    check_declared(values, str(path))
    said = values.get("model_type", "")
    if not isinstance(said, str) or not said.isprintable():
        raise ModelError(f"{path} says model_type = {said!r:.60}: write one name, a text")
    if isinstance(values.get("architectures"), str):
        raise ModelError(
            f"{path} says architectures = {values['architectures'][:60]!r}, a text: write a list with the one class"
        )
    return values
