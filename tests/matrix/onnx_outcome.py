"""What becomes of a model at the ONNX export, in one line: for tables of families."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from exporters.hf import Processor
from exporters.onnx import export_onnx
from exporters.onnx.options import GraphKind
from exporters.options import OnnxOptions
from passes.errors import UnsupportedModelError


@dataclass(frozen=True, kw_only=True)
class ExportOutcome:
    """Either the worst verified relative difference between onnxruntime and torch, or why the model is refused.

    ``no_genai``: why onnxruntime-genai cannot serve the package, or None if it can (or there is no package).
    """

    kind: GraphKind | None = None
    worst_parity: float | None = None
    refused: str | None = None
    no_genai: str | None = None


def try_export(
    model: PreTrainedModel, processor: Processor | None = None, options: OnnxOptions | None = None
) -> ExportOutcome:
    """Export into a folder that is thrown away. Raises what ``export_onnx`` raises, but for UnsupportedModelError."""
    with tempfile.TemporaryDirectory(prefix="lpc-onnx-") as folder:
        try:
            package = export_onnx(model, processor, Path(folder), options)
        except UnsupportedModelError as error:
            return ExportOutcome(refused=str(error))
    worst = max(each.value for each in package.parity)
    return ExportOutcome(kind=package.kind, worst_parity=worst, no_genai=package.no_genai)
