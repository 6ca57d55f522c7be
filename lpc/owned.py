"""What lpc's commands own in an output folder."""

from __future__ import annotations

import re
from pathlib import Path

from exporters.files import Owned
from exporters.options import EXPORTER_NAMES

MANIFEST, FAMILY = "lpc.json", "family.json"
RATIO = re.compile(r"0\.\d+")
"""The folder of one model of a family, itself an output."""


def _is_model(entry: Path) -> bool:
    """Whether an entry is one model of a family."""
    return RATIO.fullmatch(entry.name) is not None and (entry / MANIFEST).is_file()


def _is_format(entry: Path) -> bool:
    """Whether an entry of an output is the folder of an exporter that was registered."""
    return entry.name in EXPORTER_NAMES.known() and (entry.parent / MANIFEST).is_file()


OUTPUT = Owned(
    names=frozenset(
        {
            *EXPORTER_NAMES.own,
            "adapter",
            "recovery",
            "plan.json",
            "compensation.safetensors",
            "scores.safetensors",
            MANIFEST,
            "report.md",
            "benchmark.json",
            "eval.json",
            FAMILY,
            "curve.svg",
            "dense-onnx",
            ".lpc-update.json",
        }
    ),
    is_made=lambda folder: any((folder / sign).is_file() for sign in (MANIFEST, FAMILY)),
    is_member=lambda entry: _is_model(entry) or _is_format(entry),
)
"""Of ``lpc compress``, ``apply`` and ``demo``, of one model or a family: each replaces all of an older output."""
