"""Export as a pass: the compact model's ONNX package, verified against torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from exporters.files import FILES, linked
from exporters.hf import Processor
from exporters.onnx.export import export_packages, parities
from exporters.onnx.precision import FLOAT32, STORED
from exporters.options import OnnxOptions
from passes.models import base_model
from passes.pipeline import Pass, PassRecord, PassResult, Program, RunContext, plain


@dataclass(frozen=True, kw_only=True)
class WrittenPackage:
    """One precision: its folder in the exporter's (``.`` where it is alone), and what its graphs take on disk.

    ``rounds``: whether its numbers are others than those of the model.
    """

    precision: str
    folder: str
    file_bytes: int
    rounds: bool


@dataclass(frozen=True)
class ExportReport:
    """How the graphs were made, and what one token of one sequence adds to the cache, in bytes (0 without one).

    ``no_genai``: why onnxruntime-genai cannot serve them, or None if it can. ``plain_attention``: as in
    ``OnnxPackage``. Of several packages it is the first one that this is said of.
    """

    kind: str
    opset: int
    route: str
    kv_bytes_per_token: int
    no_genai: str | None
    packages: tuple[WrittenPackage, ...] = ()
    plain_attention: str | None = None


@dataclass(frozen=True)
class ExportPass(Pass):
    """Writes the ONNX package into ``folder``. Leaves the model as it is.

    ``processor`` is the tokenizer or an image processor; only a causal language model cannot do without. Ensures that
    onnxruntime (and GenAI, where it serves the model) answers as torch does.
    """

    folder: Path
    processor: Processor | None = None
    onnx: OnnxOptions = OnnxOptions()
    name = "export"
    reports: ClassVar[type[Any]] = ExportReport

    @property
    def options(self) -> Mapping[str, Any]:
        """The ONNX options."""
        return {"onnx": plain(self.onnx)}

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Export and verify."""
        model = base_model(program.model)
        found = export_packages(model, self.processor, self.folder, self.onnx, program.plan)
        package, exact = found[0], (FLOAT32.name, STORED.get(model.dtype))
        report = ExportReport(
            kind=package.kind,
            opset=package.opset,
            route=package.route,
            kv_bytes_per_token=package.kv_bytes_per_token,
            no_genai=package.no_genai,
            plain_attention=package.plain_attention,
            packages=tuple(
                WrittenPackage(
                    precision=each.precision,
                    folder=each.folder.relative_to(self.folder).as_posix(),
                    file_bytes=each.file_bytes,
                    rounds=each.precision not in exact,
                )
                for each in found
            ),
        )
        return PassResult(program, modified=False, report=report, parity=parities(found))

    def keep(self, after: Program, folder: Path) -> bool:
        """The files that were written and verified."""
        linked(self.folder, folder / FILES)
        return True

    def restore(self, before: Program, folder: Path, record: PassRecord) -> Program:
        """The same files again."""
        linked(folder / FILES, self.folder)
        return before
