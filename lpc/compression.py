"""compress() and apply(): the whole way from a dense model to a verified compact one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from peft import PeftModel

from exporters.hf import Processor
from exporters.registry import Exports, check_exports
from lpc.latency import latency_for, predicted
from lpc.material import AnyData, prepare
from lpc.options import DataOptions, Short, check_kinds, check_short, target_from, with_short
from lpc.pipelines import compression_pipeline, replay_pipeline
from lpc.recipe import Recipe
from lpc.replay import check_adapter_files, check_worn, compensated_weights
from lpc.result import Result
from lpc.run_folder import RunFolder, running
from lpc.source import ModelLike, Source, check_not_blank, load_adapter, load_source
from passes.budget import Solver
from passes.graph import Plan
from passes.models import base_model
from passes.options import (
    CompensateOptions,
    Layout,
    LoraOptions,
    RecoverOptions,
    Target,
    TraceOptions,
    TuneOptions,
)
from passes.pipeline import (
    Handed,
    Pipeline,
    Program,
    Progress,
    RunContext,
    caller_state_kept,
    device_named,
    silent,
)
from passes.trace import TracePass
from passes.tuning import settled

__all__ = ["apply", "compress"]

DEFAULT_LORA = LoraOptions()
DEFAULT_TUNE = TuneOptions()
DEFAULT_DATA = DataOptions()
DEFAULT_TRACE = TraceOptions()


@caller_state_kept()
def compress(
    model: ModelLike,
    data: AnyData,
    ratio: float | None = None,
    *,
    target: Target | None = None,
    tokenizer: Processor | None = None,
    lora: LoraOptions = DEFAULT_LORA,
    tune: TuneOptions = DEFAULT_TUNE,
    data_options: DataOptions = DEFAULT_DATA,
    trace: TraceOptions = DEFAULT_TRACE,
    compensate: CompensateOptions | bool | None = None,
    recover: RecoverOptions | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    pipeline: Callable[[Pipeline], Pipeline] | None = None,
    run_folder: str | Path | RunFolder | None = None,
    resume: bool | None = None,
    export: Exports = (),
    trust_remote_code: bool = False,
    progress: Progress = silent,
    **short: Unpack[Short],
) -> Result:
    """Make a model smaller, by ``ratio`` of all its parameters or down to a ``budget``, and prove that nothing but the
    removal changed.

    ``model`` is a live transformers or peft model (never changed), a local folder or a hub name. ``data`` for a causal
    language model is text: a path or paths, a list of texts, a ``datasets.Dataset`` or token-id sequences; or prompts
    with answers, or chats (``InstructionFormat``); or, for any model, rows with the inputs that its ``forward`` takes,
    labels among them: a ``datasets.Dataset``, a torch data set, a list of dicts, a ``.jsonl`` file or a folder that
    ``datasets`` saved. The loss is the model's own.

    By default ``data_options.samples`` rows rank the units (criterion ``obs``), what must go is masked, the projections
    that read it are re-solved, and adapters are trained under the masks, towards the dense model (docs/quality.md).
    ``tune.criterion`` and ``tune.schedule`` choose other ways. Seed and batch size of ``tune`` are the whole run's, as
    ``data_options.samples`` is: whatever draws, batches or samples follows them, unless its own options say otherwise.
    With ``steps=0`` nothing is trained. ``compensate`` says whether projections are re-solved, which is kept where
    the loss on the calibration data falls by it: before tuning where units go before it, else after merging; by default
    where nothing was trained yet.

    ``short`` are the common options by themselves (docs/options.md): ``ratio``, ``budget``, ``layout`` and ``multiple``
    of a ``target``, which has more: floors, protected layers, frozen dimensions; ``steps``, ``batch_size``,
    ``learning_rate``, ``seed`` and ``criterion`` of ``tune``; ``sequence_length`` and ``samples`` of ``data_options``.
    With ``layout="per-layer"`` each layer gets widths of its own, by
    importance. ``trace`` says which heads may go: query heads inside their groups (``query_heads``), heads that no
    stock class can do without (``custom_code``; the checkpoint then needs ``trust_remote_code``), whole layers or
    blocks (``depth``), and the ``hidden`` size. ``tokenizer`` may be an image processor as well; it is saved with the
    model (default: what lies beside the model). ``recover`` trains the compact model further, on data of which a share
    is set aside from tuning to choose the best state by. With ``recover.distill`` the source is loaded once more
    when that begins.

    ``device`` is where the model is put, once: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto``, what is there.
    ``dtype`` is that of its weights: ``fp32``, ``bf16``, ``fp16``, or ``auto``, as they are stored. ``pipeline`` gets
    the passes that these arguments make (docs/pipeline.md) and returns those that are to run. ``export`` says in which
    formats the result will be saved (as in ``Result.save``): what one of them refuses is refused before any work.

    In ``run_folder`` the run keeps what it has done, and the same call goes on from there, to the same bits
    (docs/resume.md); without one nothing is kept. ``resume``: True, there must be something; False, begin anew; None,
    go on if there is. What is kept by a run of another model, data, seed, option or package is refused: OptionError.

    Raises LpcError: OptionError, MissingFileError, DataError, ModelError, UnsupportedModelError, TokenizerError for
    what the user gave, UnreachableBudgetError stating what can be reached, PostconditionError if a verification fails.
    """
    check_short(short)
    check_kinds(target=target, tune=tune, lora=lora, trace=trace, data_options=data_options, recover=recover)
    check_kinds(compensate=compensate)
    target = target_from(target, ratio, short)
    tune, data_options = with_short(tune, short), with_short(data_options, short)
    tune, folder, resume = run_folder_of(tune, run_folder, resume)
    run = context_of(tune, data_options, device, dtype, progress)
    source = load_source(model, tokenizer, trust_remote_code=trust_remote_code, run=run)
    check_leaving(source, export)
    trace = replace(trace, custom_code=trace.custom_code or target.layout is Layout.PER_LAYER)
    program = TracePass(trace)(Program.start(source.model), run).program
    latency = latency_for(program.model, program.traced, target.wanted, progress)
    Solver.of(target, program.traced, latency)
    material = prepare(source, data, data_options)
    run = replace(run, collate=material.collate)
    teacher = _teacher(model, run, trust_remote_code) if recover and recover.distill else None
    passes = compression_pipeline(
        program.traced,
        material,
        target,
        run,
        lora=lora,
        tune=settled(tune, program.traced),
        trace=trace,
        compensate=compensate,
        recover=recover,
        teacher=teacher,
        latency=latency,
        own_adapter=isinstance(program.model, PeftModel),
    )
    passes = pipeline(passes) if pipeline else passes
    recipe = Recipe.of(program, material, data_options, passes, run) if folder is not None else None
    name, processor, notes, handed = source.name, source.processor, source.notes, Handed(program)
    del source, program  # the dense model is the pipeline's alone now, which lets it go when it is replaced
    with running(folder, recipe, resume) as checkpoints:
        run = replace(run, checkpoints=checkpoints)
        program = passes.after(TracePass.name).run(handed, run).program
    result = Result.of(program, name, processor, run, passes, material.context_length, notes)
    return replace(
        result, recipe=recipe, report=replace(result.report, latency=predicted(latency, target.wanted, result.plan))
    )


def run_folder_of(
    tune: TuneOptions, run_folder: str | Path | RunFolder | None, resume: bool | None
) -> tuple[TuneOptions, RunFolder | None, bool | None]:
    """Where a run keeps what it has done, and whether it must or must not go on, as its own arguments say or else those
    of tuning, which says nothing of it any more. Raises OptionError if that is asked for and there is no folder.
    """
    named = tune.checkpoints if run_folder is None else run_folder
    resume = True if tune.resume and resume is None else resume
    replace(tune, resume=bool(resume)).check_checkpoints(Path() if named is not None else None)
    plain_tune = replace(tune, checkpoints=None, resume=False)
    return plain_tune, RunFolder.of(named) if named is not None else None, resume


def context_of(
    tune: TuneOptions, data_options: DataOptions, device: str, dtype: str | torch.dtype, progress: Progress
) -> RunContext:
    """The context of a run whose options are these. Raises OptionError for a device that is not there."""
    run = RunContext(progress=progress, device=str(device_named(device)), dtype=dtype, samples=data_options.samples)
    return run.narrowed(tune)


def check_leaving(source: Source, export: Exports) -> None:
    """Raise what one of the formats refuses the model for, if any are named."""
    named = export if isinstance(export, Mapping) else tuple(export)
    if named:
        check_exports(named, base_model(source.model), source.processor)


def _teacher(model: ModelLike, run: RunContext, trust_remote_code: bool) -> Callable[[], torch.nn.Module]:
    """The dense model once more, when it is asked for."""
    return lambda: load_source(model, trust_remote_code=trust_remote_code, run=run).model


@caller_state_kept()
def apply(
    plan: Plan | str | Path,
    model: ModelLike,
    *,
    adapter: PeftModel | str | Path | None = None,
    compensation: str | Path | None = None,
    tokenizer: Processor | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    export: Exports = (),
    trust_remote_code: bool = False,
) -> Result:
    """Replay a plan without data and without training: the same compact checkpoint again, bit for bit.

    ``model`` is the source that the plan was made for, ``adapter`` the folder of the trained adapter (``OUT/adapter``),
    or a PeftModel that wears it. ``compensation`` is the file of the weights that were solved in the run
    (``OUT/compensation.safetensors``); by default the one beside the plan's file. Without it the weights are as they
    were before (a warning says so). Training after shrinking is left out. ``device``, ``dtype`` and ``export`` are as
    in ``compress``; the dtype is by default that of the run.

    Raises PlanError when the plan is for another model, when what is given is not what the plan names (by its sha256),
    or an adapter was trained on compensated weights that are not there, and what ``compress`` raises.
    """
    folder = None if isinstance(plan, Plan) else Path(plan) if Path(plan).is_dir() else Path(plan).parent
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    worn = adapter is not None or isinstance(model, PeftModel)
    solved = compensated_weights(plan, folder, compensation, adapter, worn=worn)
    run = RunContext(device=str(device_named(device)), dtype=dtype or str(plan.options.get("dtype", "auto")))
    live = isinstance(adapter, PeftModel)
    source = load_source(adapter if live else model, tokenizer, trust_remote_code=trust_remote_code, run=run)
    check_leaving(source, export)
    if adapter is not None and not live:
        worn_model = load_adapter(source.model, adapter)
        check_not_blank(adapter)
        check_adapter_files(plan, Path(adapter))
        source = replace(source, model=worn_model)
    elif isinstance(source.model, PeftModel):
        check_worn(plan, source.model)
    passes = replay_pipeline(plan, solved)
    name, processor, notes = source.name, source.processor, source.notes
    handed = Handed(Program.start(source.model))
    del source
    program = passes.run(handed, run).program
    return Result.of(program, name, processor, run, passes, notes=notes)
