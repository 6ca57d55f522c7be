"""The result of a compression, and writing it to disk."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.files import staged_folder
from exporters.hf import Processor, SavePass
from exporters.onnx import ExportPass, OnnxOptions, needs_tokenizer
from exporters.runtimes import compatibility
from lpc.owned import OUTPUT
from lpc.report import Report, write_manifest
from passes.criteria import SCORES_FILE, SavedScores
from passes.errors import LpcError, TokenizerError
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
        onnx: bool | OnnxOptions = True,
        force: bool = False,
        progress: Progress = silent,
    ) -> Report:
        """Write ``hf``, ``onnx``, ``adapter``, ``plan.json``, ``scores.safetensors``, ``lpc.json`` and ``report.md``.

        After a compensation also ``compensation.safetensors``, the weights that it solved; after a recovery also
        ``recovery``, the adapter that was trained on the compact model. Returns the final report.

        The folder appears whole or not at all. If the checkpoint or the ONNX package fails, or is interrupted, what is
        finished is written nevertheless: the manifest names what is ``missing`` and why, and the error is raised then,
        with a note that says how to go on.

        Raises OutputExistsError if the folder holds something (unless ``force``), OutputError when the disk refuses,
        TokenizerError if the ONNX package of a causal language model is wanted and there is no tokenizer, and
        PostconditionError when a verification fails.
        """
        folder = Path(folder)
        with staged_folder(folder, force=force, owned=OUTPUT, reads=(self.report.source,)) as stage:
            self._save_artifacts(stage)
            done = self._run(self._steps(stage, onnx), progress)
            verdicts = compatibility(self.model, done.program.history)
            report = replace(self.report, passes=done.program.history, compatibility=verdicts)
            write_manifest(stage, {**report.to_json(), "missing": done.missing})
        if done.error is not None:
            done.error.add_note(_how_to_go_on(folder, done.missing, self.report.source))
            raise done.error
        logger.info("wrote %s", folder)
        return report

    def _save_artifacts(self, stage: Path) -> None:
        """What the result can be made from again."""
        program = self.program
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

    def _steps(self, stage: Path, onnx: bool | OnnxOptions) -> list[SavePass | ExportPass]:
        steps: list[SavePass | ExportPass] = [SavePass(stage / "hf", self.processor)]
        if onnx:
            options = onnx if isinstance(onnx, OnnxOptions) else OnnxOptions()
            steps.append(ExportPass(stage / "onnx", self.processor, options))
        return steps

    def _run(self, steps: Sequence[SavePass | ExportPass], progress: Progress) -> Done:
        """Run the steps until one fails; what that one wrote is removed."""
        program = self.program
        for position, step in enumerate(steps):
            try:
                if isinstance(step, ExportPass):
                    self._check_exportable()
                program = Sequential(step, progress=progress)(program).program
            except (LpcError, KeyboardInterrupt) as error:
                shutil.rmtree(step.folder, ignore_errors=True)
                why = str(error).replace(f"{step.folder.parent}{os.sep}", "") or "interrupted"
                later = {each.folder.name: f"{step.folder.name} failed before it" for each in steps[position + 1 :]}
                return Done(program, {step.folder.name: why, **later}, error)
        return Done(program, {}, None)

    def _check_exportable(self) -> None:
        if self.tokenizer is None and needs_tokenizer(self.model):
            raise TokenizerError(
                "an ONNX package needs the tokenizer, and none was found beside the model: "
                "pass tokenizer=... to compress, or leave ONNX out (onnx=False, --no-onnx)"
            )


@dataclass(frozen=True)
class Done:
    """The program after the steps that went well; the parts that are missing, with the reason, and the error if any."""

    program: Program
    missing: Mapping[str, str]
    error: LpcError | KeyboardInterrupt | None


def _how_to_go_on(folder: Path, missing: Mapping[str, str], source: str) -> str:
    """What is kept in spite of an error, and the command that makes the rest of it."""
    kept = ", ".join(sorted(OUTPUT.entries(folder)))
    adapter = f" --adapter {folder / 'adapter'}" if (folder / "adapter").is_dir() else ""
    command = (
        f"lpc apply {folder / 'plan.json'} {source}{adapter} --out OTHER"
        if "hf" in missing
        else f"lpc export {folder / 'hf'} --out {folder / 'onnx'}"
    )
    return f"kept in {folder}: {kept}; missing: {', '.join(missing)}. `{command}` goes on from there"
