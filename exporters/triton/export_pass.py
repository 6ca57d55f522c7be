"""The Triton model repository as a pass."""

from __future__ import annotations

from dataclasses import dataclass

from exporters.onnx import ExportPass, parities
from exporters.triton.repository import export_repository
from passes.models import base_model
from passes.pipeline import PassResult, Program, RunContext


@dataclass(frozen=True)
class TritonReport:
    """The models of the repository, and what their graphs and weights take on disk."""

    models: tuple[str, ...]
    file_bytes: int


@dataclass(frozen=True)
class TritonPass(ExportPass):
    """Writes a Triton model repository into ``folder``. Leaves the model as it is.

    Ensures what ``ExportPass`` does, of the graphs that Triton will load.
    """

    name = "triton"
    reports = TritonReport

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Export and verify."""
        model = base_model(program.model)
        found = export_repository(model, self.processor, self.folder, self.onnx, program.plan)
        models = tuple(each.folder.parent.name for each in found)
        report = TritonReport(models, sum(each.file_bytes for each in found))
        return PassResult(program, modified=False, report=report, parity=parities(found))
