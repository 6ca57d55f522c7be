"""The formats that a compact model leaves in, one entry each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from transformers import PreTrainedModel

from exporters.hf import Processor, SavePass
from exporters.onnx import ExportPass, check_exportable
from exporters.options import EXPORTER_NAMES, OnnxOptions
from exporters.triton import TritonPass, check_servable
from passes.errors import OptionError
from passes.pipeline import Pass
from passes.registry import Registry

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

Exports: TypeAlias = "Iterable[str] | Mapping[str, Any]"
"""Names of exporters, or the options of each by name (None: the defaults)."""


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """One format.

    ``name`` is what it is asked for by, and the folder in the output that it owns: ``force`` may replace it. ``make``
    gives, from that folder, the processor (or None) and the options, the pass that writes it (``call``) and verifies
    what it wrote (``ensures``). ``options``: the class of the options, None where it has none. ``check`` raises for a
    model (with its processor and the options) that has no way out here; it reads no weights, since it is asked of the
    dense model before any work as well as of the compact one.

    Raises OptionError for a name that is no plain folder name.
    """

    name: str
    description: str
    make: Callable[[Path, Processor | None, Any], Pass]
    options: type[Any] | None = None
    check: Callable[[PreTrainedModel, Processor | None, Any], None] = lambda model, processor, options: None

    def __post_init__(self) -> None:
        if NAME.fullmatch(self.name) is None:
            raise OptionError(f"the exporter name {self.name!r} cannot be that of a folder of its own: give it another")


EXPORTERS = Registry("exporter", Exporter, "lpc.exporters", name_of=lambda exporter: exporter.name)
"""All exporters by name; grows with ``register_exporter``, and by packages' entry points ``lpc.exporters``."""
EXPORTER_NAMES.attach(EXPORTERS)


def register_exporter(exporter: Exporter) -> None:
    """Make a format of your own available by name to ``Result.save`` and ``--export``. Raises OptionError if taken."""
    EXPORTERS.add(exporter.name, exporter)


register_exporter(
    Exporter(
        name="hf",
        description="the Hugging Face checkpoint, reloaded and compared bit for bit",
        make=lambda folder, processor, options: SavePass(folder, processor),
    )
)
register_exporter(
    Exporter(
        name="onnx",
        description="the ONNX package for onnxruntime, onnxruntime-genai and lm-eval, compared with torch",
        make=ExportPass,
        options=OnnxOptions,
        check=check_exportable,
    )
)


register_exporter(
    Exporter(
        name="triton",
        description="a Triton model repository with the ONNX package, compared with torch",
        make=TritonPass,
        options=OnnxOptions,
        check=check_servable,
    )
)


def chosen(exports: Exports) -> dict[str, Any]:
    """The options of each exporter that is asked for, by name, in the order in which exporters came.

    Raises OptionError for none, for an unknown name, and for options of another exporter.
    """
    asked = dict(exports) if isinstance(exports, Mapping) else dict.fromkeys(exports)
    if not asked:
        raise OptionError(f"name at least one format to export: {', '.join(EXPORTERS)}")
    for name, options in asked.items():
        kind = EXPORTERS.named(name).options
        if options is None:
            asked[name] = kind() if kind is not None else None
        elif kind is None or not isinstance(options, kind):
            wanted = kind.__name__ if kind is not None else "no options"
            raise OptionError(f"the exporter {name!r} takes {wanted}, got {options!r}")
    return {name: asked[name] for name in EXPORTERS if name in asked}


def check_exports(exports: Exports, model: PreTrainedModel, processor: Processor | None) -> None:
    """Raise what one of the formats refuses this model for, and what ``chosen`` raises."""
    for name, options in chosen(exports).items():
        EXPORTERS[name].check(model, processor, options)
