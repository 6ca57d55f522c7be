"""compress() and apply(): the whole way from a dense model to a verified compact one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from exporters.hf import Processor
from exporters.options import OnnxOptions
from exporters.registry import Exports
from lpc.estimation import look_ahead
from lpc.latency import latency_for, predicted
from lpc.material import AnyData, Material
from lpc.opening import Keeping, asked, check_leaving, in_whole_blocks, on_data, onnx_in, opened
from lpc.options import CompressOptions, DataOptions, Short, with_short
from lpc.pipelines import compression_pipeline, replay_pipeline
from lpc.replay import check_adapter_files, check_worn, plan_and_weights
from lpc.result import Result
from lpc.run_folder import RunFolder
from lpc.source import ModelLike, check_not_blank, load_adapter, load_source
from passes.budget import LatencyModel, Solver
from passes.graph import Plan
from passes.models import base_model
from passes.options import (
    CompensateOptions,
    DtypeLike,
    LoraOptions,
    RecoverOptions,
    RunOptions,
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
    Watch,
    caller_state_kept,
    silent,
    unwatched,
)
from passes.ranks import together
from passes.trace import TracePass

__all__ = ["apply", "compress"]


@caller_state_kept()
def compress(
    model: ModelLike,
    data: AnyData | None = None,
    ratio: float | None = None,
    *,
    target: Target | None = None,
    tokenizer: Processor | None = None,
    run: RunOptions = RunOptions(),
    lora: LoraOptions = LoraOptions(),
    tune: TuneOptions = TuneOptions(),
    data_options: DataOptions = DataOptions(),
    trace: TraceOptions = TraceOptions(),
    compensate: CompensateOptions | bool | None = None,
    recover: RecoverOptions | None = None,
    pipeline: Callable[[Pipeline], Pipeline] | None = None,
    run_folder: str | Path | RunFolder | None = None,
    resume: bool | None = None,
    export: Exports = (),
    load_in: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
    watch: Watch = unwatched,
    **short: Unpack[Short],
) -> Result:
    """Make a model smaller, by ``ratio`` of all its parameters or down to a ``budget``, and prove that nothing but the
    removal changed.

    ``model`` is a live transformers or peft model (never changed), a local folder or a hub name. ``data`` for a causal
    language model is text: a path or paths, a list of texts, a ``datasets.Dataset`` or token-id sequences; or prompts
    with answers, or chats (``InstructionFormat``); or, for any model, rows with the inputs that its ``forward`` takes,
    labels among them: a ``datasets.Dataset``, a torch data set, a list of dicts, a ``.jsonl`` file or a folder that
    ``datasets`` saved. The loss is the model's own. Without data a causal language model writes its own, chats by its
    tokenizer's chat template or else texts, and without a ratio or budget 0.2 of the parameters go
    (docs/own-data.md); the log and the report say so.

    By default ``run.samples`` rows rank the units (criterion ``obs``), what must go is masked, the projections that
    read it are re-solved, and adapters are trained under the masks, towards the dense model (docs/quality.md).
    ``tune.criterion`` and ``tune.schedule`` choose other ways. ``run`` holds for the whole run: where it is, and what
    whatever draws, batches or samples follows, unless its own options say otherwise. With ``steps=0`` nothing is
    trained. ``compensate`` says whether projections are re-solved, which is kept where the loss on the calibration data
    falls by it: before tuning where units go before it, else after merging; by default where nothing was trained yet.

    ``short`` are the common options by themselves (docs/options.md): ``ratio``, ``budget``, ``layout`` and ``multiple``
    of a ``target``, which has more: floors, protected layers, frozen dimensions; ``device``, ``dtype``, ``seed``,
    ``batch_size`` and ``samples`` of ``run``; ``steps``, ``learning_rate`` and ``criterion`` of ``tune``;
    ``sequence_length`` of ``data_options``. With ``layout="per-layer"`` each layer gets widths of its own, by
    importance. ``trace`` says which heads may go: query heads inside their groups (``query_heads``), heads that no
    stock class can do without (``custom_code``; the checkpoint then needs ``trust_remote_code``), whole layers or
    blocks (``depth``), and the ``hidden`` size. ``tokenizer`` may be an image processor as well; it is saved with the
    model (default: what lies beside the model). ``recover`` trains the compact model further, on data of which a share
    is set aside from tuning to choose the best state by. With ``recover.distill`` the source is loaded once more
    when that begins.

    ``pipeline`` gets the passes that these arguments make (docs/pipeline.md) and returns those that are to run.
    ``export`` says in which formats the result will be saved (as in ``Result.save``): what one of them refuses is
    refused before any work.

    With ``load_in``, ``8bit`` or ``4bit``, or for a live model that was loaded so, units are ranked and adapters
    trained on packed weights (bitsandbytes); then they are merged, on the CPU into the weights of the folder itself, or
    into those of the live model as they are when unpacked (docs/loading.md).

    In ``run_folder`` the run keeps what it has done, and the same call goes on from there, to the same bits
    (docs/resume.md); without one nothing is kept. ``resume``: True, there must be something; False, begin anew; None,
    go on if there is. What is kept by a run of another model, data, seed, option or package is refused: OptionError.

    ``watch`` is told what was measured on held-out data while tuning (``tune.heldout_every``); what it raises ends the
    run.

    Raises LpcError: OptionError, MissingFileError, DataError, ModelError, UnsupportedModelError, TokenizerError for
    what the user gave, UnreachableBudgetError stating what can be reached, PostconditionError if a verification fails.
    """
    options = asked(
        target,
        ratio,
        short,
        trace,
        run=run,
        lora=lora,
        tune=tune,
        data_options=data_options,
        compensate=compensate,
        recover=recover,
        load_in=load_in,
        trust_remote_code=trust_remote_code,
    )
    keeping, options = Keeping.of(in_whole_blocks(options, export), run_folder, resume)
    source, program, context = opened(model, tokenizer, options, export, progress)
    attention = (onnx_in(export) or OnnxOptions()).attention
    latency = latency_for(program.model, program.traced, options.target.wanted, progress, attention)
    with together():
        Solver.of(options.target, program.traced, latency)
        material, options, context = on_data(source, data, options, replace(context, watch=watch))
    passes = _passes(model, program, material, options, context, latency)
    passes = pipeline(passes) if pipeline else passes
    look_ahead(program, material, options, passes.after(TracePass.name).names, context, export)
    recipe = keeping.recipe(program, source.processor, material, options, passes, context)
    name, processor, notes, handed = source.name, source.processor, source.notes + material.notes, Handed(program)
    del source, program  # the dense model is the pipeline's alone now, which lets it go when it is replaced
    with keeping.running(recipe) as folder:
        context = replace(context, checkpoints=folder)
        program = passes.after(TracePass.name).run(handed, context).program
    result = Result.of(program, name, processor, context, passes, material.context_length, notes)
    report = replace(result.report, latency=predicted(latency, options.target.wanted, result.plan))
    judge, rows = material.measure_package, material.rows
    return replace(result, recipe=recipe, options=options, report=report, judge=judge, rows=rows)


def _passes(
    model: ModelLike,
    program: Program,
    material: Material,
    options: CompressOptions,
    run: RunContext,
    latency: LatencyModel | None,
) -> Pipeline:
    """All that is done to a traced program, with the ways to load the source once more where a pass will."""
    teacher, full = _teacher(model, options, run), _full_precision(model, options, run)
    return compression_pipeline(program, material, options, run, teacher=teacher, latency=latency, source=full)


def _teacher(model: ModelLike, options: CompressOptions, run: RunContext) -> Callable[[], torch.nn.Module] | None:
    """The dense model once more, when recovery asks for it; None if it will not."""
    if options.recover is None or not options.recover.distill:
        return None
    return lambda: load_source(model, trust_remote_code=options.trust_remote_code, run=run).model


def _full_precision(
    model: ModelLike, options: CompressOptions, run: RunContext
) -> Callable[[], PreTrainedModel] | None:
    """The weights that were packed when the model was loaded, once more, on the CPU; None if it came as it is."""
    if options.load_in is None:
        return None
    host = replace(run, device="cpu")
    return lambda: base_model(load_source(model, trust_remote_code=options.trust_remote_code, run=host).model)


@caller_state_kept()
def apply(
    plan: Plan | str | Path,
    model: ModelLike,
    *,
    adapter: PeftModel | str | Path | None = None,
    compensation: str | Path | None = None,
    tokenizer: Processor | None = None,
    device: str | None = None,
    dtype: DtypeLike | None = None,
    export: Exports = (),
    trust_remote_code: bool = False,
) -> Result:
    """Replay a plan without data and without training: the same compact checkpoint again, bit for bit.

    ``model`` is the source that the plan was made for, ``adapter`` the folder of the trained adapter (``OUT/adapter``),
    or a PeftModel that wears it. ``compensation`` is the file of the weights that were solved in the run
    (``OUT/compensation.safetensors``); by default the one beside the plan's file. Without it the weights are as they
    were before (a warning says so). Training after shrinking is left out. ``device``, ``dtype`` and ``export`` are as
    in ``compress``; the dtype is by default that of the plan's run.

    Raises PlanError when the plan is for another model, when what is given is not what the plan names (by its sha256),
    or an adapter was trained on compensated weights that are not there, and what ``compress`` raises.
    """
    worn = adapter is not None or isinstance(model, PeftModel)
    plan, solved = plan_and_weights(plan, compensation, adapter, worn=worn)
    told = with_short(RunOptions(), {"device": device, "dtype": dtype or plan.options.get("dtype")})
    run, live = RunContext.of(told), isinstance(adapter, PeftModel)
    source = load_source(adapter if live else model, tokenizer, trust_remote_code=trust_remote_code, run=run)
    check_leaving(source, export)
    source = replace(source, model=_wearing(plan, source.model, None if live else adapter))
    passes = replay_pipeline(plan, solved)
    name, processor, notes = source.name, source.processor, source.notes
    handed = Handed(Program.start(source.model))
    del source
    program = passes.run(handed, run).program
    return Result.of(program, name, processor, run, passes, notes=notes)


def _wearing(plan: Plan, model: PreTrainedModel | PeftModel, folder: str | Path | None) -> PreTrainedModel | PeftModel:
    """The model with the adapter of a folder, if one is named; whatever it wears then must be what the plan names."""
    if folder is not None:
        worn = load_adapter(model, folder)
        check_not_blank(folder)
        check_adapter_files(plan, Path(folder))
        return worn
    if isinstance(model, PeftModel):
        check_worn(plan, model)
    return model
