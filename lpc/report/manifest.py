"""The manifest ``lpc.json``: what was made, how, with which packages, and the hash of every file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporters.files import sha256, write_text
from lpc.report.report import render
from lpc.versions import versions
from passes.errors import DataError

SCHEMA_VERSION = 2
MANIFEST = "lpc.json"
REPORT = "report.md"


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Write ``report.md`` and ``lpc.json`` for the files in the folder.

    ``values`` are the report's; schema version, package versions and file hashes are added. A benchmark or evaluation
    that lies in the folder goes into the report.
    """
    benchmark, evaluation = (_read_json(folder / name) for name in ("benchmark.json", "eval.json"))
    write_text(folder / REPORT, render(values, benchmark, evaluation))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest = {
        **values,
        "schema_version": SCHEMA_VERSION,
        "versions": values.get("versions") or versions(),
        "files": {
            str(path.relative_to(folder)): {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files
        },
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def refresh(folder: Path) -> None:
    """Bring report and hashes up to date after a benchmark or an evaluation; nothing to do outside an lpc output."""
    manifest = _read_json(folder / MANIFEST)
    if manifest is not None:
        write_manifest(folder, manifest)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); remove it or make it anew") from error
    return values
