"""compress_family(): one tuning run that leaves a verified model at each of several ratios."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel

from exporters.files import staged_folder
from exporters.hf import Processor
from exporters.onnx import OnnxOptions, export_onnx
from lpc.compression import DEFAULT_LORA, DEFAULT_TEXT, DEFAULT_TRACE, DEFAULT_TUNE, Job, target_from
from lpc.family_report import DENSE_ONNX, FamilyReport
from lpc.material import AnyData, DataOptions, prepare
from lpc.owned import MANIFEST, OUTPUT
from lpc.ranking import choices
from lpc.report import record
from lpc.result import Result
from lpc.source import ModelLike, load_source
from lpc.speed import BENCHMARK_FILE, Benchmark, BenchmarkOptions, benchmark
from passes.budget import Layout, Solver, Target
from passes.decide import DecidePass
from passes.errors import LpcError, OptionError, UnsupportedModelError
from passes.models import LoraOptions, Task, base_model, task_of
from passes.pipeline import Program, Progress, Sequential, Snapshot, caller_state_kept, plain, silent
from passes.trace import TraceOptions, TracePass
from passes.tuning import AttachPass, RecallPass, Schedule, SnapshotOptions, TuneOptions, TunePass

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
        onnx: bool | OnnxOptions = True,
        benchmark: bool | BenchmarkOptions = False,
        force: bool = False,
        progress: Progress = silent,
    ) -> FamilyReport:
        """Write each result into a folder named after its ratio, and ``family.json``, ``report.md``, ``curve.svg``.

        ``benchmark`` also writes the dense model's package, ``dense-onnx``, and times every model against it in
        onnxruntime. The folder appears whole or not at all. A part of a model that fails is named as missing there, as
        ``Result.save`` does; nothing is timed then, and the error is raised at the end. Raises what ``Result.save``
        raises, and OptionError if there is nothing to time.
        """
        folder = Path(folder)
        timed = (benchmark if isinstance(benchmark, BenchmarkOptions) else QUICK) if benchmark else None
        if timed is not None:
            self._check_timeable(onnx)
        times: dict[float, Benchmark] = {}
        failed: list[LpcError | KeyboardInterrupt] = []
        with staged_folder(folder, force=force, owned=OUTPUT, reads=self._inputs()) as stage:
            for ratio, result in zip(self.ratios, self.results, strict=True):
                wanted = onnx if not any(isinstance(error, KeyboardInterrupt) for error in failed) else False
                failed += _saved(result, stage / str(ratio), folder / str(ratio), wanted, progress)
            if timed is not None and not failed:
                self._export_dense(stage / DENSE_ONNX, onnx)
                times = {ratio: _time(stage, folder, ratio, timed, progress) for ratio in self.ratios}
            reports = {ratio: result.report for ratio, result in zip(self.ratios, self.results, strict=True)}
            report = FamilyReport.of(reports, stage, times)
            report.write(stage)
        if failed:
            raise failed[0]
        return report

    def _inputs(self) -> tuple[str | Path, ...]:
        return (self.source,) if isinstance(self.source, str | Path) else ()

    def _check_timeable(self, onnx: bool | OnnxOptions) -> None:
        if not onnx:
            raise OptionError("latency is measured on the ONNX packages: leave onnx on, or benchmark off")
        if task_of(self.results[0].model) is Task.SEQ2SEQ_LM:
            raise UnsupportedModelError("the benchmark times models in one graph, not encoder-decoders: leave it off")

    def _export_dense(self, folder: Path, onnx: bool | OnnxOptions) -> None:
        source = load_source(self.source, self.results[0].processor, trust_remote_code=self.trust_remote_code)
        dense = source.model.merge_and_unload() if isinstance(source.model, PeftModel) else source.model
        folder.mkdir()
        export_onnx(base_model(dense), source.processor, folder, onnx if isinstance(onnx, OnnxOptions) else None)


@caller_state_kept()
def compress_family(
    model: ModelLike,
    data: AnyData,
    ratios: Sequence[float],
    *,
    cooldown: int | None = None,
    layout: str = Layout.UNIFORM,
    target: Target | None = None,
    steps: int | None = None,
    seed: int | None = None,
    multiple: int | None = None,
    tokenizer: Processor | None = None,
    lora: LoraOptions = DEFAULT_LORA,
    tune: TuneOptions = DEFAULT_TUNE,
    text: DataOptions = DEFAULT_TEXT,
    trace: TraceOptions = DEFAULT_TRACE,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> CompactFamily:
    """Make a model smaller by each of the ratios in one tuning run, and prove each result as ``compress`` does.

    ``ratios`` ascend; after each has been reached, the adapters get ``cooldown`` steps under its masks before the model
    is taken (default: an equal part of the schedule's cool-down). ``steps`` are those of the whole run. A ``target``
    must have the last ratio as its own. Units go progressively, by default by LoRAPrune's scores. The other arguments
    are those of ``compress``.

    Raises what ``compress`` raises, and OptionError for ratios that are not distinct, ascending and between 0 and 1,
    for a target with a budget, and for too few steps.
    """
    snapshots = SnapshotOptions(ratios=tuple(ratios), cooldown=cooldown)
    target = target_from(target, snapshots.ratios[-1] if target is None else None, None, layout, multiple)
    tune = replace(tune, steps=tune.steps if steps is None else steps, seed=tune.seed if seed is None else seed)
    tune = replace(tune, schedule=tune.schedule or Schedule()).settled()
    source = load_source(model, tokenizer, trust_remote_code=trust_remote_code)
    trace = replace(trace, custom_code=trace.custom_code or target.layout is Layout.PER_LAYER)
    program = TracePass(trace)(Program.start(source.model)).program
    solver = Solver.of(target, program.traced)
    snapshots.course(solver, tune.schedule or Schedule(), tune.steps, revival=tune.revival)
    material = prepare(source, data, text)
    job = Job(source, material, material.measure_dense(program.model), progress)
    training = TunePass(target, material.train, tune, progress, collate=material.collate, snapshots=snapshots)
    program = Sequential(AttachPass(lora, tune.seed), training, progress=progress)(program).program
    made = {**choices(tune, text, target), "snapshots": plain(snapshots)}
    results = tuple(_result(job, program, snapshot, target, tune, made) for snapshot in program.snapshots)
    return CompactFamily(results=results, ratios=snapshots.ratios, source=model, trust_remote_code=trust_remote_code)


def _result(
    job: Job, program: Program, snapshot: Snapshot, target: Target, tune: TuneOptions, made: Mapping[str, Any]
) -> Result:
    """The model of one snapshot; ``made`` says how all of them were."""
    told = {**made, "step": snapshot.step}
    decide = DecidePass(replace(target, ratio=snapshot.ratio), tune.criterion, told)
    return job.finish(program, RecallPass(snapshot), decide, tune=tune)


def _saved(
    result: Result, member: Path, shown: Path, onnx: bool | OnnxOptions, progress: Progress
) -> list[LpcError | KeyboardInterrupt]:
    """Save one model of the family. Returns the error of a part that is missing; raises one that leaves nothing.

    ``shown`` is where the model will lie, for the error's note.
    """
    try:
        result.save(member, onnx=onnx, progress=progress)
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
