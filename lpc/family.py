"""compress_family(): one tuning run that leaves a verified model at each of several ratios."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from peft import PeftModel
from transformers import PreTrainedModel

from exporters.files import staged_folder
from exporters.hf import Processor
from exporters.onnx import export_onnx
from exporters.options import DEFAULT_EXPORTS, OnnxOptions
from exporters.registry import Exports, chosen
from lpc.estimation import look_ahead
from lpc.family_report import DENSE_ONNX, FamilyReport
from lpc.material import AnyData, Material
from lpc.opening import Keeping, asked, in_whole_blocks, on_data, opened
from lpc.options import BenchmarkOptions, CompressOptions, DataOptions, Short
from lpc.owned import MANIFEST, output
from lpc.pipelines import MEMBER_NAMES, choices, family_pipeline, member_pipeline
from lpc.recipe import Recipe
from lpc.report import record
from lpc.result import Result
from lpc.run_folder import RunFolder, held, kept_if_stopped
from lpc.source import ModelLike, Source, load_source
from lpc.speed import BENCHMARK_FILE, Benchmark, benchmark
from passes.budget import Solver
from passes.decide import DecidePass
from passes.errors import LpcError, OptionError, UnsupportedModelError
from passes.models import Task, base_model, task_of
from passes.options import LoraOptions, RunOptions, Schedule, SnapshotOptions, Target, TraceOptions, TuneOptions
from passes.pipeline import Pipeline, Program, Progress, RunContext, Snapshot, caller_state_kept, plain, silent
from passes.ranks import on_first, together
from passes.trace import TracePass
from passes.tuning import settled, staged_run

QUICK = BenchmarkOptions(batches=(1,), prefill_tokens=(128,), decode_pasts=(128,))
"""What is timed where the user does not say: one prefill and one decode step."""


@dataclass(frozen=True, kw_only=True)
class CompactFamily:
    """The compact models of one run, by ascending ratio; each is a full result of its own."""

    results: tuple[Result, ...]
    ratios: tuple[float, ...]
    source: ModelLike
    trust_remote_code: bool = False

    def save(
        self,
        folder: str | Path,
        *,
        export: Exports = DEFAULT_EXPORTS,
        benchmark: bool | BenchmarkOptions = False,
        force: bool = False,
        progress: Progress = silent,
    ) -> FamilyReport:
        """Write each result into a folder named after its ratio, and ``family.json``, ``report.md``, ``curve.svg``.

        ``export`` as in ``Result.save``. ``benchmark`` also writes the dense model's package, ``dense-onnx``, and times
        every model against it in onnxruntime. The folder appears whole or not at all. A part of a model that fails is
        named as missing there, as ``Result.save`` does; nothing is timed then, and the error is raised at the end.
        Of several processes the first one writes; the others get the report without times. Raises what ``Result.save``
        raises, and OptionError if there is nothing to time.
        """
        folder, exports = Path(folder), chosen(export)
        timed = (benchmark if isinstance(benchmark, BenchmarkOptions) else QUICK) if benchmark else None
        if timed is not None:
            check_timeable(self.results[0].model, exports)
        return on_first(lambda: self._save(folder, exports, timed, progress, force=force)) or self._report(folder, {})

    def _report(self, folder: Path, times: Mapping[float, Benchmark]) -> FamilyReport:
        reports = {ratio: result.report for ratio, result in zip(self.ratios, self.results, strict=True)}
        return FamilyReport.of(reports, folder, times)

    def _save(
        self,
        folder: Path,
        exports: dict[str, Any],
        timed: BenchmarkOptions | None,
        progress: Progress,
        *,
        force: bool,
    ) -> FamilyReport:
        times: dict[float, Benchmark] = {}
        failed: list[LpcError | KeyboardInterrupt] = []
        with (
            kept_if_stopped(self.run_folder),
            staged_folder(folder, force=force, owned=output(), reads=self._inputs(), run=self.run_folder) as stage,
        ):
            for ratio, result in zip(self.ratios, self.results, strict=True):
                interrupted = any(isinstance(error, KeyboardInterrupt) for error in failed)
                wanted = {"hf": None} if interrupted else exports
                failed += _saved(result, stage / str(ratio), folder / str(ratio), wanted, progress)
            if timed is not None and not failed:
                self._export_dense(stage / DENSE_ONNX, exports["onnx"])
                times = {ratio: _time(stage, folder, ratio, timed, progress) for ratio in self.ratios}
            report = self._report(stage, times)
            report.write(stage)
            self.results[0].save_recipe(stage)
        if self.run_folder is not None:
            with held(self.run_folder):
                RunFolder(path=self.run_folder).clear()
        if failed:
            raise failed[0]
        return report

    @property
    def run_folder(self) -> Path | None:
        """Where the run kept what it had done; None if nowhere."""
        own = self.results[0].run_folder
        return own.parent if own is not None else None

    def _inputs(self) -> tuple[str | Path, ...]:
        return (self.source,) if isinstance(self.source, str | Path) else ()

    def _export_dense(self, folder: Path, options: OnnxOptions) -> None:
        source = load_source(self.source, self.results[0].processor, trust_remote_code=self.trust_remote_code)
        dense = source.model.merge_and_unload() if isinstance(source.model, PeftModel) else source.model
        folder.mkdir()
        export_onnx(base_model(dense), source.processor, folder, options)


@caller_state_kept()
def compress_family(
    model: ModelLike,
    data: AnyData | None,
    ratios: Sequence[float],
    *,
    cooldown: int | None = None,
    target: Target | None = None,
    tokenizer: Processor | None = None,
    run: RunOptions = RunOptions(),
    lora: LoraOptions = LoraOptions(),
    tune: TuneOptions = TuneOptions(),
    data_options: DataOptions = DataOptions(),
    trace: TraceOptions = TraceOptions(),
    run_folder: str | Path | RunFolder | None = None,
    resume: bool | None = None,
    export: Exports = (),
    benchmark: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
    **short: Unpack[Short],
) -> CompactFamily:
    """Make a model smaller by each of the ratios in one tuning run, and prove each result as ``compress`` does.

    ``ratios`` ascend; after each has been reached, the adapters get ``cooldown`` steps under its masks before the model
    is taken (default: an equal part of the schedule's cool-down). ``steps`` are those of the whole run. A ``target``
    must have the last ratio as its own. Units go progressively, by default by LoRAPrune's scores. ``benchmark`` says
    that they will be timed (``CompactFamily.save``): what cannot be is refused before any work, as it is for
    ``export``. The other arguments are those of ``compress``.

    Raises what ``compress`` raises, and OptionError for ratios that are not distinct, ascending and between 0 and 1,
    for a target with a budget, and for too few steps.
    """
    snapshots = SnapshotOptions(ratios=tuple(ratios), cooldown=cooldown)
    last = snapshots.ratios[-1] if target is None else None
    options = asked(
        target,
        last,
        short,
        trace,
        run=run,
        lora=lora,
        tune=tune,
        data_options=data_options,
        snapshots=snapshots,
        trust_remote_code=trust_remote_code,
    )
    keeping, options = Keeping.of(in_whole_blocks(options, export), run_folder, resume)
    schedule = options.tune.schedule or Schedule()
    options = replace(options, tune=settled(replace(options.tune, schedule=schedule)))
    source, program, context = opened(model, tokenizer, options, export, progress)
    with together():
        if benchmark:
            check_timeable(base_model(source.model), export)
        solver = Solver.of(options.target, program.traced)
        staged_run(snapshots, solver, schedule, options.tune.steps, revival=options.tune.revival)
        material, options, context = on_data(source, data, options, context)
    passes = family_pipeline(material, options)
    coming = [*passes.after(TracePass.name).names, *len(snapshots.ratios) * MEMBER_NAMES]
    look_ahead(program, material, options, coming, context, ())
    recipe = keeping.recipe(program, source.processor, material, options, passes, context)
    with keeping.running(recipe) as folder:
        context = replace(context, checkpoints=folder)
        results = _Training(source, material, options, passes, context, recipe).run(program)
    return CompactFamily(results=results, ratios=snapshots.ratios, source=model, trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class _Training:
    """The run that the models of a family have in common."""

    source: Source
    material: Material
    options: CompressOptions
    passes: Pipeline
    context: RunContext
    recipe: Recipe | None

    def run(self, program: Program) -> tuple[Result, ...]:
        """Train, and make a model of each snapshot."""
        own_adapter = isinstance(program.model, PeftModel)
        trained = self.passes.after(TracePass.name)(program, self.context).program
        return tuple(self._member(each, trained, own_adapter=own_adapter) for each in trained.snapshots)

    def _member(self, snapshot: Snapshot, trained: Program, *, own_adapter: bool) -> Result:
        tune, target, snapshots = self.options.tune, self.options.target, plain(self.options.snapshots)
        made = {**choices(tune, target, self.context), "snapshots": snapshots, "step": snapshot.step}
        decide = DecidePass(replace(target, ratio=snapshot.ratio), tune.criterion, made)
        member = member_pipeline(snapshot, trained.traced, self.material, decide, own_adapter=own_adapter)
        context, whole = self.context.inside(str(snapshot.ratio)), Pipeline([*self.passes, *member])
        done = member(trained, context).program
        source, length = self.source, self.material.context_length
        found = Result.of(
            done, source.name, source.processor, context, whole, length, source.notes + self.material.notes
        )
        judge, rows = self.material.measure_package, self.material.rows
        return replace(found, recipe=self.recipe, options=self.options, judge=judge, rows=rows)


def check_timeable(model: PreTrainedModel, export: Exports) -> None:
    """Raise OptionError if there is no graph to time, UnsupportedModelError if there are two."""
    if "onnx" not in export:
        raise OptionError("latency is measured on the ONNX packages: export onnx too, or leave benchmark off")
    if len(chosen(export)["onnx"].precision) > 1:
        raise OptionError("a family is timed in one precision: name one, or leave benchmark off")
    if task_of(model) is Task.SEQ2SEQ_LM:
        raise UnsupportedModelError("the benchmark times models in one graph, not encoder-decoders: leave it off")


def _saved(
    result: Result, member: Path, shown: Path, exports: Exports, progress: Progress
) -> list[LpcError | KeyboardInterrupt]:
    """Save one model of the family. Returns the error of a part that is missing; raises one that leaves nothing.

    ``shown`` is where the model will lie, for the error's note.
    """
    try:
        result.write(member, export=exports, progress=progress)
    except (LpcError, KeyboardInterrupt) as error:
        if not (member / MANIFEST).is_file():
            raise
        error.__notes__ = [note.replace(str(member), str(shown)) for note in getattr(error, "__notes__", ())]
        return [error]
    return []


def _time(stage: Path, folder: Path, ratio: float, options: BenchmarkOptions, progress: Progress) -> Benchmark:
    """Time one model against the dense one; the record names the folder where they will lie."""
    member = stage / str(ratio)
    found = benchmark(member, stage / DENSE_ONNX, options, progress)
    moved = {
        name: replace(each, path=str(folder.absolute() / Path(each.path).relative_to(stage)))
        for name, each in found.models.items()
    }
    found = replace(found, models=moved)
    record(member, {BENCHMARK_FILE: json.dumps(found.to_json(), indent=1) + "\n"})
    return found
