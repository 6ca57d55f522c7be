"""compress() and apply(): the whole way from a dense model to a verified compact one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel

from exporters.hf import Processor
from lpc.evaluation import Score
from lpc.latency import latency_for, predicted
from lpc.material import AnyData, DataOptions, Material, prepare, set_aside
from lpc.ranking import choices, compensation_for, ranking_passes, unattaching_passes
from lpc.replay import compensated_weights
from lpc.report import HeldOut, Measure, Merging, Report
from lpc.result import Result
from lpc.source import ModelLike, Source, check_not_blank, load_adapter, load_source
from passes.budget import Budget, Layout, Solver, Target
from passes.compensation import CompensateOptions, CompensatePass, RecompensatePass
from passes.decide import DecidePass, ReplayPass
from passes.errors import OptionError
from passes.graph import Plan
from passes.models import LoraOptions, masked
from passes.pipeline import Pass, Program, Progress, Sequential, caller_state_kept, silent
from passes.shrink import ShrinkPass
from passes.trace import TraceOptions, TracePass, options_for
from passes.tuning import MergePass, RecoverOptions, RecoverPass, TuneOptions

__all__ = ["DataOptions", "apply", "compress"]

logger = logging.getLogger(__name__)

DEFAULT_LORA = LoraOptions()
DEFAULT_TUNE = TuneOptions()
DEFAULT_TEXT = DataOptions()
DEFAULT_TRACE = TraceOptions()


@caller_state_kept()
def compress(
    model: ModelLike,
    data: AnyData,
    ratio: float | None = None,
    *,
    budget: Budget | None = None,
    layout: str = Layout.UNIFORM,
    target: Target | None = None,
    steps: int | None = None,
    seed: int | None = None,
    criterion: str | None = None,
    multiple: int | None = None,
    tokenizer: Processor | None = None,
    lora: LoraOptions = DEFAULT_LORA,
    tune: TuneOptions = DEFAULT_TUNE,
    text: DataOptions = DEFAULT_TEXT,
    trace: TraceOptions = DEFAULT_TRACE,
    compensate: CompensateOptions | bool | None = None,
    recover: RecoverOptions | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Result:
    """Make a model smaller, by ``ratio`` of all its parameters or down to a ``budget``, and prove that nothing but the
    removal changed.

    ``model`` is a live transformers or peft model (never changed), a local folder or a hub name. ``data`` for a causal
    language model is text: a path or paths, a list of texts, a ``datasets.Dataset`` or token-id sequences; or prompts
    with answers, or chats (``InstructionFormat``); or, for any model, rows with the inputs that its ``forward`` takes,
    labels among them: a ``datasets.Dataset``, a torch data set, a list of dicts, a ``.jsonl`` file or a folder that
    ``datasets`` saved. The loss is the model's own.

    By default ``text.samples`` rows rank the units (criterion ``obs``), what must go is masked, the projections that
    read it are solved anew, and adapters are trained under the masks, drawn to the dense model (docs/quality.md).
    ``tune.criterion`` and ``tune.schedule`` choose other ways; ``steps``, ``seed`` and ``criterion`` are short for the
    same fields of ``tune``. With ``steps=0`` nothing is trained. ``compensate`` says whether projections are solved
    anew, which is kept where the loss on the calibration data falls by it: before tuning where units go before it, else
    after merging; by default where nothing was trained yet.

    ``ratio``, ``budget``, ``layout`` and ``multiple`` are short for the same fields of a ``target``, which has more:
    floors, protected layers, frozen dimensions. With ``layout="per-layer"`` each layer gets widths of its own, by
    importance. ``trace`` says which heads may go: query heads inside their groups (``query_heads``), heads that no
    stock class can do without (``custom_code``; the checkpoint then needs ``trust_remote_code``), whole layers or
    blocks (``depth``), and the ``hidden`` size. ``tokenizer`` may be an image processor as well; it is saved with the
    model (default: what lies beside the model). ``recover`` trains the compact model further, on data of which a share
    is set aside from tuning to choose the best state by. With ``recover.distill`` the source is held in memory once
    more.

    Raises LpcError: OptionError, MissingFileError, DataError, ModelError, UnsupportedModelError, TokenizerError for
    what the user gave, UnreachableBudgetError stating what can be reached, PostconditionError if a verification fails.
    """
    target = target_from(target, ratio, budget, layout, multiple)
    tune = _tune(tune, steps, seed, criterion)
    source = load_source(model, tokenizer, trust_remote_code=trust_remote_code)
    trace = replace(trace, custom_code=trace.custom_code or target.layout is Layout.PER_LAYER)
    program = TracePass(trace)(Program.start(source.model)).program
    tune = tune.settled(program.traced)
    solving = compensation_for(compensate, tune, program.traced)
    latency = latency_for(program.model, program.traced, target.wanted, progress)
    Solver.of(target, program.traced, latency)
    material = prepare(source, data, text)
    train, aside = set_aside(material.train) if recover else (material.train, None)
    job = Job(source, material, material.measure_dense(program.model), progress)
    progress("held-out", 1, 3)
    first = bool(tune.steps) and tune.one_shot
    solve: list[Pass] = []
    if solving:
        solve.append(CompensatePass(train, solving, progress, material.collate, keep_originals=first))
    scored = replace(material, train=train)
    ranking = ranking_passes(target, scored, lora, tune, text, latency, progress, solve if first else ())
    program = Sequential(*ranking, progress=progress)(program).program
    decide = DecidePass(target, tune.criterion, choices(tune, text, target), latency)
    after: list[Pass] = []
    if recover and aside is not None:
        teacher = load_source(model, trust_remote_code=trust_remote_code).model if recover.distill else None
        after.append(RecoverPass(train, aside, recover, progress, material.collate, teacher))
    result = job.finish(program, decide, tune=tune, solve=() if first else solve, after=after)
    return replace(result, report=replace(result.report, latency=predicted(latency, target.wanted, result.plan)))


@dataclass(frozen=True)
class Job:
    """A source, what it is tuned and measured on, and ``dense``: its score before anything is done to it."""

    source: Source
    material: Material
    dense: Score
    progress: Progress

    def finish(
        self,
        program: Program,
        *decide: Pass,
        tune: TuneOptions,
        solve: Sequence[Pass] = (),
        after: Sequence[Pass] = (),
    ) -> Result:
        """From a tuned program to the compact model; measures with the units gone, and at the end.

        ``solve`` runs on the merged model before it is shrunk, ``after`` on the compact one.
        """
        own_adapter = isinstance(self.source.model, PeftModel)
        program = Sequential(*decide, progress=self.progress)(program).program
        removed = None if own_adapter else _removed(program, self.material)
        self.progress("held-out", 2, 3)
        off = unattaching_passes(tune, own_adapter=own_adapter)
        attached = self._masked(program) if not off and _merging_rounds(program) else None
        program = Sequential(*off, MergePass(), progress=self.progress)(program).program
        merged = self._masked(program) if attached and (solve or after) else None
        program = Sequential(*solve, ShrinkPass(), *after, progress=self.progress)(program).program
        pruned = self.material.measure(program.model)
        self.progress("held-out", 3, 3)
        merging = Merging(attached.measures, (merged or pruned).measures) if attached else None
        heldout = replace(_heldout(self.material, self.dense, removed, pruned), merging=merging)
        return _result(self.source, program, heldout)

    def _masked(self, program: Program) -> Score:
        """The measure of a program's model under its masks."""
        assert program.masks is not None
        with masked(program.model, program.traced, program.masks):
            return self.material.measure(program.model)


def _tune(tune: TuneOptions, steps: int | None, seed: int | None, criterion: str | None) -> TuneOptions:
    """The tuning that the arguments of ``compress`` say."""
    tune = replace(tune, steps=tune.steps if steps is None else steps, seed=tune.seed if seed is None else seed)
    return replace(tune, criterion=criterion or tune.criterion)


def target_from(
    target: Target | None, ratio: float | None, budget: Budget | None, layout: str, multiple: int | None
) -> Target:
    """The target that the arguments of ``compress`` say. Raises OptionError if it is said twice."""
    short = ratio is not None or budget is not None or multiple is not None or layout != Layout.UNIFORM
    if target is None:
        return Target(ratio=ratio, budget=budget, layout=layout, multiple=multiple)
    if short:
        raise OptionError("give either target or ratio, budget, layout and multiple, not both")
    return target


@caller_state_kept()
def apply(
    plan: Plan | str | Path,
    model: ModelLike,
    *,
    adapter: PeftModel | str | Path | None = None,
    compensation: str | Path | None = None,
    tokenizer: Processor | None = None,
    trust_remote_code: bool = False,
) -> Result:
    """Replay a plan without data and without training: the same compact checkpoint again, bit for bit.

    ``model`` is the source that the plan was made for, ``adapter`` the folder of the trained adapter (``OUT/adapter``),
    or a PeftModel that wears it. ``compensation`` is the file of the weights that were solved in the run
    (``OUT/compensation.safetensors``); by default the one beside the plan's file. Without it the weights are as they
    were before (a warning says so). Training after shrinking is left out. Raises PlanError when the plan is for another
    model, or an adapter was trained on compensated weights that are not there, and what ``compress`` raises.
    """
    folder = None if isinstance(plan, Plan) else Path(plan).parent
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    worn = adapter is not None or isinstance(model, PeftModel)
    solved = compensated_weights(plan, folder, compensation, adapter, worn=worn)
    if isinstance(adapter, PeftModel):
        source = load_source(adapter, tokenizer)
    else:
        source = load_source(model, tokenizer, trust_remote_code=trust_remote_code)
        if adapter is not None:
            worn_model = load_adapter(source.model, adapter)
            check_not_blank(adapter)
            source = replace(source, model=worn_model)
    again: list[Pass] = [RecompensatePass(solved)] if solved else []
    first, after = (again, []) if plan.compensated_first else ([], again)
    steps = [TracePass(options_for(plan.kept)), ReplayPass(plan), *first, MergePass(), *after, ShrinkPass()]
    return _result(source, Sequential(*steps)(Program.start(source.model)).program, None)


def _heldout(material: Material, dense: Score, removed: Score | None, pruned: Score) -> HeldOut:
    before, between = dense.measures, removed.measures if removed else {}
    return HeldOut(
        measures={name: Measure(before[name], between.get(name), value) for name, value in pruned.measures.items()},
        rows=pruned.rows,
        labels=pruned.labels,
        context_length=material.context_length,
    )


def _removed(program: Program, material: Material) -> Score:
    """The measure of the dense weights with the units gone and nothing healed."""
    assert program.masks is not None
    model = program.model
    off = model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
    dense = program.compensation.undone(model) if program.compensation else nullcontext()
    with off, dense, masked(program.model, program.traced, program.masks):
        return material.measure(program.model)


def _merging_rounds(program: Program) -> bool:
    """Whether W + s·BA is rounded to fewer digits than the adapter is trained with."""
    return isinstance(program.model, PeftModel) and program.traced.dtype.itemsize < torch.float32.itemsize


def _result(source: Source, program: Program, heldout: HeldOut | None) -> Result:
    assert program.plan is not None
    report = Report.of(source.name, program.traced, program.plan, program.history, heldout, source.notes)
    return Result(program=program, report=report, processor=source.processor)
