"""The result of a compression, and writing it to disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.files import staged_folder
from exporters.hf import Processor
from exporters.options import DEFAULT_EXPORTS
from exporters.registry import EXPORTERS, Exports, chosen
from exporters.runtimes import compatibility
from lpc.report import Report, write_manifest
from passes.criteria import SCORES_FILE, SavedScores
from passes.graph import Plan
from passes.models import base_model
from passes.pipeline import WEIGHTS_FILE, Program, Progress, Sequential, silent

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A compact model that was proven to compute what the masked model computed.

    ``report`` holds the numbers so far; saving adds those of the checkpoint and of the ONNX package.
    """

    program: Program
    report: Report
    processor: Processor | None = None

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
        export: Exports = DEFAULT_EXPORTS,
        force: bool = False,
        progress: Progress = silent,
    ) -> Report:
        """Write ``hf``, ``onnx``, ``adapter``, ``plan.json``, ``scores.safetensors``, ``lpc.json`` and ``report.md``.

        After a compensation also ``compensation.safetensors``, the weights that it solved; after a recovery also
        ``recovery``, the adapter that was trained on the compact model. ``export`` names the formats, or maps
        their names to options (``exporters.registry``). Returns the final report.

        The folder appears whole or not at all. Raises OutputExistsError if it holds something (unless ``force``),
        OutputError when the disk refuses, OptionError for an unknown format, TokenizerError if the ONNX package of a
        causal language model is wanted and there is no tokenizer, and PostconditionError when a verification fails.
        """
        exports = chosen(export)
        for name in exports:
            EXPORTERS[name].check(self.model, self.processor)
        with staged_folder(Path(folder), force=force, owned=EXPORTERS) as stage:
            steps = [EXPORTERS[name].make(stage / name, self.processor, options) for name, options in exports.items()]
            program = Sequential(*steps, progress=progress)(self.program).program
            verdicts = compatibility(self.model, program.history)
            report = replace(self.report, passes=program.history, compatibility=verdicts)
            (stage / "plan.json").write_text(self.plan.to_json(), encoding="utf-8")
            if program.adapter is not None:
                program.adapter.save(stage / "adapter")
            if program.compensation is not None and program.compensation.weights:
                program.compensation.save(stage / WEIGHTS_FILE)
            if program.recovery is not None:
                program.recovery.adapter.save(stage / "recovery")
            if program.scores is not None:
                saved = SavedScores(self.plan.source, self.plan.criterion, program.scores, self.plan.scored_by)
                saved.save(stage / SCORES_FILE)
            write_manifest(stage, report.to_json())
        logger.info("wrote %s", folder)
        return report
