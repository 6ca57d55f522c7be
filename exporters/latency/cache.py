"""Latency tables on disk: one JSON file a key, remade where it cannot be read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from exporters.files import write_text
from exporters.latency.curve import Curve
from exporters.latency.specimens import Terms
from passes.errors import DataError, OutputError

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2
"""Goes up when the same key would be measured in another way."""

PACKAGES = ("onnxruntime", "onnx", "onnx-ir", "onnxscript", "torch", "transformers")
"""Those that have a hand in the graphs or in their speed."""

KEY_DIGITS = 32


def default_cache() -> Path:
    """``LPC_CACHE`` if it is set, else ``~/.cache/lpc``; the tables lie in ``latency`` there."""
    root = os.environ.get("LPC_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "lpc") / "latency"


def versions() -> dict[str, str]:
    """Versions of the packages that the key holds."""
    return {package: version(package) for package in PACKAGES}


def key_of(facts: Mapping[str, Any]) -> str:
    """The table's key: sha256 of everything that its seconds depend on, and of the versions."""
    whole = {"schema": SCHEMA_VERSION, "versions": versions(), **facts}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]


def read_terms(path: Path, widths: Collection[str]) -> Terms | None:
    """The terms of these widths in a file; None if there is no file or, with a warning, if it is broken."""
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        curves = {
            name: Curve(tuple(map(int, curve["counts"])), tuple(map(float, curve["seconds"])))
            for name, curve in values["curves"].items()
        }
        constant = float(values["constant"])
        if not 0 <= constant < float("inf") or {*curves} != {*widths}:
            raise DataError(f"the constant is {constant}, the widths are {', '.join(curves)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("the latency table %s cannot be read (%s) and is made again", path, error)
        return None
    return Terms(constant, curves)


def write_terms(path: Path, terms: Terms, facts: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all; a folder that refuses it is warned of, the table is good without."""
    values = {
        "facts": {"schema": SCHEMA_VERSION, "versions": versions(), **facts},
        "constant": terms.constant,
        "curves": {name: {"counts": each.counts, "seconds": each.seconds} for name, each in terms.curves.items()},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(values, indent=1) + "\n")
    except (OSError, OutputError) as error:
        logger.warning("the latency table could not be kept in %s: %s", path, error)
