"""The pipelines: which passes a run goes through, in which order, with which options. One function a verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from lpc.answering import AnswerPass
from lpc.data import Row
from lpc.material import Material, set_aside
from lpc.measuring import ATTACHED, DENSE, MERGED, PRUNED, REMOVED, MeasurePass
from lpc.options import CompressOptions
from passes.budget import LatencyModel
from passes.compensation import CompensatePass, RecompensatePass
from passes.criteria import Needs, criterion_named
from passes.decide import DecidePass, ReplayPass, ScorePass
from passes.errors import OptionError
from passes.graph import Kind, Plan, PruningGraph
from passes.models import base_model, packed_weights
from passes.options import CompensateOptions, ScoreOptions, Target, TuneOptions
from passes.pipeline import Pass, Pipeline, Program, RunContext, Snapshot, plain
from passes.ranks import sharded
from passes.shrink import ShrinkPass
from passes.trace import TracePass, options_for
from passes.tuning import AttachPass, DetachPass, MergePass, RecallPass, RecoverPass, TunePass, UnpackPass, settled

BEFORE_TUNING = CompensateOptions(ridge=1.0)
"""Gently: what tuning starts from should not be far from the dense weights (docs/quality-small.md)."""


def compression_pipeline(
    program: Program,
    material: Material,
    options: CompressOptions,
    run: RunContext,
    *,
    teacher: Callable[[], torch.nn.Module] | None = None,
    latency: LatencyModel | None = None,
    source: Callable[[], PreTrainedModel] | None = None,
) -> Pipeline:
    """All that ``compress`` does to a traced program, from tracing to the last measure.

    What ranks units on data (a one-shot schedule, or no steps) is a ``score`` before tuning; what re-solves projections
    stands before tuning if units go there, else after merging. An adapter that the model came with is trained further
    and never taken off. Packed weights are unpacked before anything is decided, from their ``source``, if it is here.
    Raises DataError where a share to recover by is not there.
    """
    graph, own_adapter = program.traced, isinstance(program.model, PeftModel)
    tune, recover = settled(options.tune, graph), options.recover
    train, aside = set_aside(material.train) if recover else (material.train, None)
    solve, first = compensation_for(options.compensate, tune, graph), bool(tune.steps) and tune.one_shot
    packed = packed_weights(base_model(program.model))
    if packed and first:
        _check_packed(options.compensate)
        solve = None
    rounds = merging_rounds(graph) and (bool(tune.steps) or own_adapter)
    passes: tuple[Pass | None, ...] = (
        TracePass(options.trace),
        material.generate,
        MeasurePass(DENSE, material.measure_dense),
        _asked(DENSE, material),
        *_choosing(train, replace(options, tune=tune), latency, solve if first else None),
        UnpackPass(source) if packed else None,
        DecidePass(options.target, tune.criterion, choices(tune, options.target, run), latency),
        None if own_adapter else MeasurePass(REMOVED, material.measure),
        None if tune.steps or own_adapter else DetachPass(),
        MeasurePass(ATTACHED, material.measure) if rounds else None,
        MergePass(),
        MeasurePass(MERGED, material.measure) if rounds and (recover or (solve and not first)) else None,
        CompensatePass(train, solve) if solve and not first else None,
        ShrinkPass(),
        RecoverPass(train, aside, recover, teacher, tune.save_every) if recover and aside is not None else None,
        MeasurePass(PRUNED, material.measure_pruned),
        _asked(PRUNED, material),
    )
    return Pipeline(each for each in passes if each is not None)


def _asked(stage: str, material: Material) -> AnswerPass | None:
    """The pass that has an instruction model answer; None for any other."""
    return AnswerPass(stage, material.answer) if material.answer else None


def _check_packed(asked: CompensateOptions | bool | None) -> None:
    """Nothing is re-solved on packed weights. Raises OptionError if that was asked for."""
    if asked:
        raise OptionError("8- or 4-bit weights cannot be re-solved before tuning: leave compensate (--compensate) out")


def _choosing(
    train: torch.utils.data.Dataset[Row],
    options: CompressOptions,
    latency: LatencyModel | None,
    solve: CompensateOptions | None,
) -> tuple[Pass | None, ...]:
    """The passes by which units are chosen and the adapters trained; ``solve``: how to compensate before training.

    Raises OptionError for what cannot be done on sharded weights.
    """
    target, tune = options.target, options.tune
    ranked = not tune.steps or tune.one_shot
    if solve and tune.distill and sharded():
        raise OptionError(
            "with sharded weights (FSDP) nothing is distilled from those that a compensation replaced: leave one of "
            "them out (--no-compensate, or --distill 0)"
        )
    adapted = bool(tune.steps) or criterion_named(tune.criterion).needs is Needs.ADAPTER
    scoring = ScoreOptions(criterion=tune.criterion, importance=tune.importance_for(target))
    return (
        AttachPass(options.lora) if adapted else None,
        ScorePass(target, train, scoring, latency) if ranked else None,
        CompensatePass(train, solve, keep_originals=True) if solve else None,
        TunePass(target, train, tune, latency) if tune.steps else None,
    )


def family_pipeline(material: Material, options: CompressOptions) -> Pipeline:
    """What the models of a family have in common: one training run, which leaves a snapshot for each.

    ``options.tune`` is settled.
    """
    passes: tuple[Pass | None, ...] = (
        TracePass(options.trace),
        material.generate,
        MeasurePass(DENSE, material.measure_dense),
        _asked(DENSE, material),
        AttachPass(options.lora),
        TunePass(options.target, material.train, options.tune, snapshots=options.snapshots),
    )
    return Pipeline(each for each in passes if each is not None)


MEMBER_NAMES = ("recall", "decide", "measure", "merge", "shrink", "measure")
"""The passes that ``member_pipeline`` makes at least, as progress tells them."""


def member_pipeline(
    snapshot: Snapshot, graph: PruningGraph, material: Material, decide: DecidePass, *, own_adapter: bool = False
) -> Pipeline:
    """From a family's program to one of its models."""
    passes: tuple[Pass | None, ...] = (
        RecallPass(snapshot),
        decide,
        None if own_adapter else MeasurePass(REMOVED, material.measure),
        MeasurePass(ATTACHED, material.measure) if merging_rounds(graph) else None,
        MergePass(),
        ShrinkPass(),
        MeasurePass(PRUNED, material.measure_pruned),
        _asked(PRUNED, material),
    )
    return Pipeline(each for each in passes if each is not None)


def replay_pipeline(plan: Plan, solved: Mapping[str, torch.Tensor]) -> Pipeline:
    """A plan again, without data and without training; ``solved`` are the weights that its run re-solved, by name."""
    again = RecompensatePass(solved) if solved else None
    passes: tuple[Pass | None, ...] = (
        TracePass(options_for(plan.kept)),
        ReplayPass(plan),
        again if plan.compensated_first else None,
        MergePass(),
        None if plan.compensated_first else again,
        ShrinkPass(),
    )
    return Pipeline(each for each in passes if each is not None)


def merging_rounds(graph: PruningGraph) -> bool:
    """Whether W + s·BA is rounded to fewer digits than the adapter is trained with."""
    return graph.dtype.itemsize < torch.float32.itemsize


def compensation_for(
    asked: CompensateOptions | bool | None, tune: TuneOptions, graph: PruningGraph
) -> CompensateOptions | None:
    """How to compensate. By default (None) it is done where nothing was trained yet, and every unit is one of width."""
    if isinstance(asked, CompensateOptions):
        return asked
    whole = any(d.kind.is_depth or d.kind is Kind.HIDDEN for d in graph.dimensions)
    wanted = (tune.one_shot or not tune.steps) and not whole if asked is None else asked
    if not wanted:
        return None
    return BEFORE_TUNING if tune.steps and tune.one_shot else CompensateOptions()


def choices(tune: TuneOptions, target: Target, run: RunContext) -> Mapping[str, Any]:
    """What of the options made the decision, as plain values, for the plan."""
    scored = not tune.steps or tune.one_shot
    told = {**run.told(plain(tune)), **({"seed": run.seed} if scored else {})}
    names = ("steps", "seed", "revival", "schedule", "depth_scores") if tune.steps else ("steps", "seed")
    made = {name: told[name] for name in names}
    if tune.distill:
        made["distill"] = told["distill"]
    made["importance"] = plain(tune.importance_for(target))
    if run.dtype != "auto":
        made["dtype"] = str(run.dtype)
    return {**made, "samples": run.samples, "batch_size": run.batch_size} if scored else made
