"""The manifest ``lpc.json``: what was made, how, with which packages, and the hash of every file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from exporters.files import UPDATE, hashes, sealed, updating, write_texts
from lpc.owned import MANIFEST
from lpc.report.card import CARD, card, licence_of
from lpc.report.page import run_page
from lpc.report.render import render
from lpc.versions import versions
from passes.errors import DataError

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2
REPORT, PAGE = "report.md", "report.html"
NO_TEXTS: Mapping[str, str] = MappingProxyType({})


def write_manifest(folder: Path, values: Mapping[str, Any], texts: Mapping[str, str] = NO_TEXTS) -> None:
    """Write the reports, the model card and ``lpc.json`` for the files in the folder, and ``texts``, by name.

    All of them are written together: a kill in between leaves the rest to the next command. ``values`` are the
    report's; schema version, package versions, file hashes and a seal are added. A benchmark or evaluation that lies in
    the folder goes into the report.
    """
    found = {name: texts.get(name) or _text(folder / name) for name in ("benchmark.json", "eval.json")}
    benchmark, evaluation = (_parsed(folder / name, text) for name, text in found.items())
    if evaluation is not None and "asked" not in evaluation:
        logger.warning("%s was written by an older lpc and is not shown in the report", folder / "eval.json")
        evaluation = None
    values = {**values, "schema_version": SCHEMA_VERSION, "versions": values.get("versions") or versions()}
    values["source"] = {"licence": licence_of(values["source"]["path"]), **values["source"]}
    texts = {**texts, REPORT: render(values, benchmark, evaluation), **_card(folder, values, evaluation)}
    found_files = {**_files(folder), **_hashes(texts)}
    found_files.pop(PAGE, None)  # of itself a page cannot say the hash
    texts[PAGE] = run_page({**values, "files": dict(sorted(found_files.items()))}, benchmark, evaluation)
    manifest = {**values, "files": dict(sorted({**found_files, **_hashes({PAGE: texts[PAGE]})}.items()))}
    write_texts(folder, {**texts, MANIFEST: sealed(manifest)})


def record(folder: Path, texts: Mapping[str, str] = NO_TEXTS) -> None:
    """Write texts into a folder and, in an lpc output, bring report and hashes up to date with them.

    Raises OutputError when the disk refuses, DataError if the output's own files are broken.
    """
    with updating(folder):
        values = _parsed(folder / MANIFEST, _text(folder / MANIFEST))
        if values is not None:
            write_manifest(folder, values, texts)
        elif texts:
            write_texts(folder, texts)


def complete(part: Path) -> None:
    """Note in the manifest beside a part what it holds now, and that it is not missing; nothing to do elsewhere."""
    place = Path(os.path.realpath(part))
    folder = next((each for each in place.parents[:2] if (each / MANIFEST).is_file()), place.parent)
    values, name = _parsed(folder / MANIFEST, _text(folder / MANIFEST)), place.relative_to(folder).parts[0]
    if values is None or name not in {*values.get("missing", {}), *(Path(each).parts[0] for each in values["files"])}:
        return
    with updating(folder):
        missing = {each: why for each, why in values.get("missing", {}).items() if each != name}
        write_manifest(folder, {**values, "missing": missing})


def _card(folder: Path, values: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, str]:
    """The model card, where there is a checkpoint to describe."""
    config = _parsed(folder / "hf" / "config.json", _text(folder / "hf" / "config.json"))
    return {CARD: card(values, evaluation, (config.get("architectures") or [""])[0])} if config else {}


def _files(folder: Path) -> dict[str, dict[str, str | int]]:
    """sha256 and size of every file that lies in the folder."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in {MANIFEST, UPDATE})
    return hashes(folder, (str(path.relative_to(folder)) for path in paths))


def _hashes(texts: Mapping[str, str]) -> dict[str, dict[str, str | int]]:
    """The same of files that are about to be written."""
    contents = {name: text.encode() for name, text in texts.items()}
    return {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _parsed(path: Path, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        values: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); remove it or make it anew") from error
    return values
