"""What was discovered, on disk: one JSON file a class, small configuration and version of all that has a hand in it."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import passes
from passes.errors import UnsupportedModelError
from passes.families import AttentionLayout, Family, Packing, Proof

logger = logging.getLogger(__name__)

ROOMS = ("discovery", "families", "graph", "models", "shrink", "trace")
"""The rooms whose code has a hand in what is discovered."""

PACKAGES = ("torch", "torch-pruning", "transformers")
KEY_DIGITS = 32


def default_cache() -> Path:
    """``LPC_CACHE`` if it is set, else ``~/.cache/lpc``; the families lie in ``discovered`` there."""
    root = os.environ.get("LPC_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "lpc") / "discovered"


def key_of(kind: type, config: type, small: Mapping[str, Any]) -> str:
    """sha256 of the source of a model's class and of its configuration's, of our own, and of a small configuration."""
    facts = {
        "class": kind.__qualname__,
        "sources": [_source(kind), _source(config), _own_source()],
        "versions": {package: version(package) for package in PACKAGES},
        "small": small,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:KEY_DIGITS]


def read_family(path: Path) -> Family | None:
    """The family in a file; None if there is no file or, with a warning, if it is broken.

    Raises UnsupportedModelError if what was found is that there is none.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        refused = values.get("refused")
        family = None if refused is not None else _family(values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s cannot be read (%s): the structure is looked for again", path, error)
        return None
    if refused is not None:
        raise UnsupportedModelError(str(refused))
    return family


def write_family(path: Path, found: Family | str) -> None:
    """Keep a family, or the reason why there is none. Says so in the log where it cannot be written."""
    values = {"refused": found} if isinstance(found, str) else _plain(found)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            stage = Path(folder) / path.name
            stage.write_text(json.dumps(values, indent=1), encoding="utf-8")
            stage.replace(path)
    except OSError as error:
        logger.warning("what was discovered cannot be kept in %s: %s", path, error)


def _plain(family: Family) -> dict[str, Any]:
    values = {name: value for name, value in vars(family).items() if name not in ("refused", "llama_cpp", "vllm")}
    return {
        **values,
        "attentions": [{**vars(each), "attributes": dict(each.attributes)} for each in family.attentions],
        "fixed": dict(family.fixed),
        "stays": dict(family.stays),
        "outputs": dict(family.outputs),
        "proof": asdict(family.proof) if family.proof is not None else None,
    }


def _family(values: dict[str, Any]) -> Family:
    proof = values.pop("proof")
    layouts = tuple(_layout(each) for each in values.pop("attentions"))
    found = Proof(worst=float(proof["worst"]), checks=tuple(proof["checks"]))
    return Family(layouts, **{**values, "meaningful": tuple(values["meaningful"]), "proof": found})


def _layout(values: dict[str, Any]) -> AttentionLayout:
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return AttentionLayout(**{**values, **lists, "packing": Packing(values["packing"])})


def _source(kind: type) -> str:
    """The text of the file that a class is in; its name alone where there is no file (a notebook)."""
    try:
        return inspect.getsource(sys.modules[kind.__module__])
    except (OSError, TypeError, KeyError):
        return f"{kind.__module__}.{kind.__qualname__}"


@cache
def _own_source() -> str:
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((Path(passes.__path__[0]) / room).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
