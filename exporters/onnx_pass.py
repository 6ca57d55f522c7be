"""Export as a pass: the compact model's ONNX package, verified against torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from exporters.onnx_export import export_onnx
from exporters.onnx_options import OnnxOptions
from passes.infra import Pass, PassResult, plain
from passes.models import base_model
from passes.program import Program


@dataclass(frozen=True)
class ExportReport:
    """How the graph was made, and what one token of one sequence adds to its cache, in bytes."""

    opset: int
    dtype: str
    route: str
    kv_bytes_per_token: int


@dataclass(frozen=True)
class ExportPass(Pass):
    """Writes the ONNX package into ``folder``. Leaves the model as it is.

    Ensures that onnxruntime and GenAI answer as torch does: prefill, decode, padding, empty past, greedy tokens.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    onnx: OnnxOptions = OnnxOptions()
    name = "export"

    @property
    def options(self) -> Mapping[str, Any]:
        """The ONNX options."""
        return {"onnx": plain(self.onnx)}

    def call(self, program: Program) -> PassResult:
        """Export and verify."""
        package = export_onnx(base_model(program.model), self.tokenizer, self.folder, self.onnx)
        report = ExportReport(package.opset, package.dtype, package.route, package.kv_bytes_per_token)
        return PassResult(program, modified=False, report=report, parity=package.parity)
