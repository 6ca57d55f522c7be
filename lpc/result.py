"""The result of a compression, and writing it to disk."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.files import MODEL_FILE, sha256, staged_folder, write_text
from exporters.hf import Processor
from exporters.onnx import ExportReport
from exporters.options import DEFAULT_EXPORTS, IdRows, OnnxOptions
from exporters.registry import EXPORTERS, Exports, chosen
from exporters.runtimes import compatibility
from lpc.answering import answers_of
from lpc.evaluation import Quality
from lpc.measuring import heldout_of
from lpc.options import RECIPE_FILE, CompressOptions, recipe_text
from lpc.owned import output
from lpc.recipe import Recipe
from lpc.report import PackageCost, Report, write_manifest
from lpc.run_folder import EXPORTS, RunFolder, kept_if_stopped
from passes.errors import LpcError, OptionError
from passes.graph import Plan
from passes.models import base_model, reason
from passes.pipeline import Pass, Pipeline, Program, Progress, RunContext, silent
from passes.ranks import on_first

logger = logging.getLogger(__name__)

ONNX_FOLDER = "onnx"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A compact model that was proven to compute what the masked model computed.

    ``report`` holds the numbers so far; saving adds those of the checkpoint and of the ONNX package. ``recipe`` is
    there if the run kept what it had done, in the folder ``report.run.checkpoints``; ``options`` are those of the run,
    for ``recipe.yaml``; ``command`` is what was typed; ``judge`` measures an ONNX folder on what
    was held out; ``rows`` are what the model was tuned on, by which int4's codes are chosen.
    """

    program: Program
    report: Report
    processor: Processor | None = None
    recipe: Recipe | None = None
    options: CompressOptions | None = None
    command: str | None = None
    judge: Callable[[Path], Quality] | None = None
    rows: IdRows | None = None

    @classmethod
    def of(
        cls,
        program: Program,
        source: str = "",
        processor: Processor | None = None,
        run: RunContext | None = None,
        pipeline: Pipeline | None = None,
        context_length: int | None = None,
        notes: tuple[str, ...] = (),
    ) -> Result:
        """The result of a pipeline that has run to its end, as ``compress`` makes it and a user's own may.

        ``source`` is the name of what it began with; ``context_length`` is as in ``HeldOut``, ``notes`` as in
        ``Report``. Raises OptionError if there is no plan, or its units are masked still.
        """
        if program.graph is None or program.plan is None or program.masks is not None:
            raise OptionError("a result is a program with a plan whose units are cut out: end with ShrinkPass")
        heldout = heldout_of(program.history, context_length)
        name = source or str(base_model(program.model).config.name_or_path or program.graph.family)
        report = Report.of(name, program.graph, program.plan, program.history, heldout, notes, program.scores)
        report = replace(
            report, answers=answers_of(program.history), run=run, pipeline=pipeline.entries if pipeline else ()
        )
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

    @property
    def run_folder(self) -> Path | None:
        """Where the run kept what it had done; None if nowhere."""
        return self.report.run.checkpoints if self.report.run else None

    def save(
        self,
        folder: str | Path,
        *,
        export: Exports = DEFAULT_EXPORTS,
        onnx: bool = True,
        force: bool = False,
        progress: Progress = silent,
    ) -> Report:
        """Write ``hf``, ``onnx``, ``adapter``, ``plan.json``, ``scores.safetensors``, ``lpc.json``, ``report.md`` and
        ``report.html``.

        After a compensation also ``compensation.safetensors``, the weights that it solved; after a recovery also
        ``recovery``, the adapter that was trained on the compact model: the program's artifacts save themselves, and
        the plan names their files. ``export`` names the formats, or maps their names to options
        (``exporters.registry``); ``onnx=False`` is short for an ``export`` without it, as ``--no-onnx`` is. Returns the
        final report.

        The folder appears whole or not at all. If the checkpoint or the ONNX package fails, or is interrupted, what is
        finished is written nevertheless: the manifest names what is ``missing`` and why, and the error is raised then,
        with a note that says how to go on. In a run with a run folder finished formats are kept there as well, until
        the output is written, and an interruption leaves it at that. The run folder goes with that. Of several
        processes the first one writes; the others wait, and get the report as it was before.

        Raises OptionError for an unknown format, OutputExistsError if the folder holds something (unless ``force``),
        OutputError when the disk refuses, TokenizerError if the ONNX package of a causal language model is wanted and
        there is no tokenizer, and PostconditionError when a verification fails.
        """
        exports = chosen(export)
        if not onnx and exports.pop("onnx", None) is not None and not exports:
            raise OptionError("nothing is left to export without onnx: name another format")
        return on_first(lambda: self._save(Path(folder), exports, progress, force=force)) or self.report

    def _save(self, folder: Path, exports: Mapping[str, Any], progress: Progress, *, force: bool) -> Report:
        with kept_if_stopped(self.run_folder):
            return self.write(folder, export=exports, force=force, progress=progress, run=self.run_folder)

    def write(
        self,
        folder: str | Path,
        *,
        export: Exports = DEFAULT_EXPORTS,
        force: bool = False,
        progress: Progress = silent,
        run: Path | None = None,
    ) -> Report:
        """As ``save``, for a folder that is a part of an output still to be finished: the run folder keeps all.

        ``run`` is a run folder that is not needed any more then, and goes.
        """
        folder, exports = Path(folder), chosen(export)
        with staged_folder(folder, force=force, owned=output(), reads=(self.report.source,), run=run) as stage:
            self.save_artifacts(stage)
            done = self._run(stage, exports, progress)
            verdicts = compatibility(self.model, done.program.history)
            report = replace(self.report, passes=done.program.history, compatibility=verdicts)
            report = replace(report, packages=self._packages(stage, done.program))
            report = replace(report, pipeline=(*self.report.pipeline, *Pipeline(done.steps).entries))
            recipe = asdict(self.recipe) if self.recipe else None
            write_manifest(
                stage, {**report.to_json(), "missing": done.missing, "recipe": recipe, "command": self.command}
            )
        if run is not None:
            RunFolder(path=run).clear()
        if done.error is not None:
            done.error.add_note(_how_to_go_on(folder, done.missing, self.report.source))
            raise done.error
        logger.info("wrote %s", folder)
        return report

    def _packages(self, stage: Path, program: Program) -> tuple[PackageCost, ...]:
        """What each ONNX package costs, and how good it is."""
        found: list[PackageCost] = []
        for written in (record.report for record in program.history if isinstance(record.report, ExportReport)):
            for each in written.packages:
                place = Path(ONNX_FOLDER) / each.folder
                measures = self._measures(stage / place) if each.rounds else self._pruned
                told = PackageCost(
                    precision=each.precision, folder=place.as_posix(), file_bytes=each.file_bytes, measures=measures
                )
                found.append(told)
        return tuple(found)

    @property
    def _pruned(self) -> Mapping[str, float]:
        """The checkpoint's measures."""
        heldout = self.report.heldout
        return {name: each.pruned for name, each in heldout.measures.items()} if heldout else {}

    def _measures(self, package: Path) -> Mapping[str, float]:
        """Those of a package, if it can be measured: of two graphs lpc measures none."""
        if self.judge is None or not (package / MODEL_FILE).is_file():
            return {}
        try:
            return self.judge(package).measures
        except Exception as error:  # noqa: BLE001 what is written and proven is not lost for a number
            logger.warning("the package in %s is not measured: %s", package.name, reason(error))
            return {}

    def save_recipe(self, folder: Path) -> None:
        """Write ``recipe.yaml``, with every option of the run, if they are known. Raises OutputError."""
        if self.options is not None:
            data = "" if self.options.data_options.self_share == 1 else "--data DATA "
            command = f"lpc compress {self.report.source} {data}--recipe {RECIPE_FILE} --out OTHER"
            head = f"Every option of a run; to repeat it:\n{command}"
            write_text(folder / RECIPE_FILE, recipe_text(self.options, head))

    def save_artifacts(self, stage: Path) -> None:
        """Write what the result can be made from again: artifacts, and the plan, which names their files."""
        self.save_recipe(stage)
        left = [file for artifact in self.program.artifacts for file in artifact.save(stage)]
        replace(self.plan, artifacts={file.as_posix(): sha256(stage / file) for file in left}).save(stage)

    def _run(self, stage: Path, exports: Mapping[str, Any], progress: Progress) -> Done:
        """Run the exporters until one fails; what that one wrote is removed."""
        program, names, steps = self.program, list(exports), list[Pass]()
        for position, name in enumerate(names):
            exporter, folder, options = EXPORTERS[name], stage / name, self._with_rows(exports[name])
            try:
                exporter.check(self.model, self.processor, options)
                steps.append(exporter.make(folder, self.processor, options))
                run = RunContext(progress=progress, checkpoints=self.run_folder).inside(EXPORTS).inside(name)
                program = Pipeline(steps[-1:])(program, run).program
            except (LpcError, KeyboardInterrupt) as error:
                shutil.rmtree(folder, ignore_errors=True)
                if isinstance(error, KeyboardInterrupt) and self.run_folder is not None:
                    raise
                why = str(error).replace(f"{stage}{os.sep}", "") or "interrupted"
                later = dict.fromkeys(names[position + 1 :], f"{name} failed before it")
                return Done(program, steps, {name: why, **later}, error)
        return Done(program, steps, {}, None)

    def _with_rows(self, options: Any) -> Any:
        """The options of an exporter, with what the model was tuned on where it can use that."""
        return replace(options, rows=self.rows) if isinstance(options, OnnxOptions) else options


@dataclass(frozen=True)
class Done:
    """The program after the ``steps`` that went well; the parts that are missing, with the reason, and the error."""

    program: Program
    steps: Sequence[Pass]
    missing: Mapping[str, str]
    error: LpcError | KeyboardInterrupt | None


def _how_to_go_on(folder: Path, missing: Mapping[str, str], source: str) -> str:
    """What is kept in spite of an error, and the command that makes the rest of it."""
    kept = ", ".join(sorted(output().entries(folder)))
    adapter = f" --adapter {folder / 'adapter'}" if (folder / "adapter").is_dir() else ""
    command = (
        f"lpc apply {folder / 'plan.json'} {source}{adapter} --out OTHER"
        if "hf" in missing
        else f"lpc export {folder / 'hf'} --out {folder / 'onnx'}"
    )
    return f"kept in {folder}: {kept}; missing: {', '.join(missing)}. `{command}` goes on from there"
