"""What lpc's commands own in an output folder."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from exporters.files import Owned
from exporters.options import DEFAULT_EXPORTS, EXPORTER_NAMES
from passes.errors import OptionError

MANIFEST, FAMILY = "lpc.json", "family.json"
RECIPE = "recipe.json"
"""What a run is made of, in the folder in which it keeps what it has done."""
RATIO = re.compile(r"0\.\d+")
"""The folder of one model of a family, itself an output."""

OUTPUT = Owned(
    names=frozenset(
        {
            "hf",
            "onnx",
            "adapter",
            "recovery",
            "plan.json",
            "compensation.safetensors",
            "scores.safetensors",
            MANIFEST,
            "report.md",
            "report.html",
            "benchmark.json",
            "eval.json",
            "lm-eval",
            "recipe.yaml",
            FAMILY,
            "curve.svg",
            "dense-onnx",
            ".lpc-update.json",
        }
    ),
    is_made=lambda folder: any((folder / sign).is_file() for sign in (MANIFEST, FAMILY)),
    is_member=lambda entry: RATIO.fullmatch(entry.name) is not None and (entry / MANIFEST).is_file(),
)
"""Of ``lpc compress``, ``apply`` and ``demo``, of one model or a family: each replaces all of an older output."""


def manifests(folder: Path) -> list[Path]:
    """The manifests in an output: of its one model, or of each of a family."""
    one = folder / MANIFEST
    if one.is_file() or not (folder / FAMILY).is_file():
        return [one]
    return sorted(path for path in folder.glob(f"0.*/{MANIFEST}") if RATIO.fullmatch(path.parent.name))


def output() -> Owned:
    """``OUTPUT`` with the folders of all formats. Raises OptionError where one has the name of something else."""
    taken = sorted((OUTPUT.names - {*DEFAULT_EXPORTS}) & {*EXPORTER_NAMES.known()})
    if taken:
        raise OptionError(f"the exporter name {taken[0]!r} is that of another part of an output: give it another")
    return replace(OUTPUT, names=OUTPUT.names | {*EXPORTER_NAMES.known()})


def is_complete(folder: Path) -> bool:
    """Whether a folder is an output of which nothing is missing."""
    try:
        return not any(json.loads(each.read_text(encoding="utf-8"))["missing"] for each in manifests(folder))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
