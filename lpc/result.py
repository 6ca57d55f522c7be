"""The result of a compression, and writing it to disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.files import sha256, staged_folder
from exporters.hf import Processor, SavePass
from exporters.onnx import ExportPass, OnnxOptions, needs_tokenizer
from exporters.runtimes import compatibility
from lpc.measuring import heldout_of
from lpc.report import Report, write_manifest
from passes.errors import OptionError, TokenizerError
from passes.graph import Plan
from passes.models import base_model
from passes.pipeline import Pass, Pipeline, Program, Progress, RunContext, silent

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A compact model that was proven to compute what the masked model computed.

    ``report`` holds the numbers so far; saving adds those of the checkpoint and of the ONNX package.
    """

    program: Program
    report: Report
    processor: Processor | None = None

    @classmethod
    def of(
        cls,
        program: Program,
        source: str = "",
        processor: Processor | None = None,
        run: RunContext | None = None,
        pipeline: Pipeline | None = None,
        context_length: int | None = None,
    ) -> Result:
        """The result of a pipeline that has run to its end, as ``compress`` makes it and a user's own may.

        ``source`` is the name of what it began with; ``context_length`` is as in ``HeldOut``. Raises OptionError if
        there is no plan, or its units are masked still.
        """
        if program.graph is None or program.plan is None or program.masks is not None:
            raise OptionError("a result is a program with a plan whose units are cut out: end with ShrinkPass")
        heldout = heldout_of(program.history, context_length)
        name = source or str(base_model(program.model).config.name_or_path or program.graph.family)
        report = Report.of(name, program.graph, program.plan, program.history, heldout)
        report = replace(report, run=run, pipeline=pipeline.entries if pipeline else ())
        return cls(program=program, report=report, processor=processor)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer, if it has one."""
        return self.processor if isinstance(self.processor, PreTrainedTokenizerBase) else None

    @property
    def model(self) -> PreTrainedModel:
        """The compact model, a plain transformers model."""
        return base_model(self.program.model)

    @property
    def plan(self) -> Plan:
        """The decision; with the source and the adapter it replays the result without data."""
        assert self.program.plan is not None
        return self.program.plan

    def save(
        self,
        folder: str | Path,
        *,
        onnx: bool | OnnxOptions = True,
        force: bool = False,
        progress: Progress = silent,
    ) -> Report:
        """Write ``hf``, ``onnx``, ``adapter``, ``plan.json``, ``scores.safetensors``, ``lpc.json`` and ``report.md``.

        After a compensation also ``compensation.safetensors``, the weights that it solved; after a recovery also
        ``recovery``, the adapter that was trained on the compact model: the program's artifacts save themselves, and
        the plan names their files. Returns the final report.

        The folder appears whole or not at all. Raises OutputExistsError if it holds something (unless ``force``),
        OutputError when the disk refuses, TokenizerError if the ONNX package of a causal language model is wanted and
        there is no tokenizer, and PostconditionError when a verification fails.
        """
        if onnx and self.tokenizer is None and needs_tokenizer(self.model):
            raise TokenizerError(
                "an ONNX package needs the tokenizer, and none was found beside the model: "
                "pass tokenizer=... to compress, or leave ONNX out (onnx=False, --no-onnx)"
            )
        with staged_folder(Path(folder), force=force) as stage:
            steps = self._steps(stage, onnx)
            program = steps(self.program, RunContext(progress=progress)).program
            verdicts = compatibility(self.model, program.history)
            report = replace(self.report, passes=program.history, compatibility=verdicts)
            report = replace(report, pipeline=(*report.pipeline, *steps.entries))
            left = [file for artifact in program.artifacts for file in artifact.save(stage)]
            named = {file.as_posix(): sha256(stage / file) for file in left}
            replace(self.plan, artifacts=named).save(stage)
            write_manifest(stage, report.to_json())
        logger.info("wrote %s", folder)
        return report

    def _steps(self, stage: Path, onnx: bool | OnnxOptions) -> Pipeline:
        steps: list[Pass] = [SavePass(stage / "hf", self.processor)]
        if onnx:
            options = onnx if isinstance(onnx, OnnxOptions) else OnnxOptions()
            steps.append(ExportPass(stage / "onnx", self.processor, options))
        return Pipeline(steps)
