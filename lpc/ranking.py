"""Which passes rank the units: tuning, or calibration data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lpc.material import Material
from lpc.options import DataOptions
from passes.budget import LatencyModel
from passes.criteria import Needs, criterion_named
from passes.decide import ScorePass
from passes.graph import Kind, PruningGraph
from passes.options import CompensateOptions, LoraOptions, ScoreOptions, Target, TuneOptions
from passes.pipeline import Pass, Progress, plain
from passes.tuning import AttachPass, DetachPass, TunePass

BEFORE_TUNING = CompensateOptions(ridge=1.0)
"""Gently: what tuning starts from should not be far from the dense weights (docs/quality.md)."""


def ranking_passes(
    target: Target,
    material: Material,
    lora: LoraOptions,
    tune: TuneOptions,
    data_options: DataOptions,
    latency: LatencyModel | None,
    progress: Progress,
    solve: Sequence[Pass] = (),
) -> list[Pass]:
    """The passes that leave scores and masks: they attach and tune, or with no steps score a sample.

    With a one-shot schedule these are scored first and ``solve`` runs before tuning. Without steps an adapter is
    attached only for a criterion that reads one.
    """
    attach = AttachPass(lora, tune.seed)
    training = TunePass(target, material.train, tune, progress, material.collate, latency) if tune.steps else None
    if training and not tune.one_shot:
        return [attach, training]
    options = ScoreOptions(
        criterion=tune.criterion,
        samples=data_options.samples,
        batch_size=tune.batch_size,
        seed=tune.seed,
        importance=tune.importance_for(target),
    )
    score = ScorePass(target, material.train, options, progress, material.collate, latency)
    if training:
        return [attach, score, *solve, training]
    return [attach, score] if criterion_named(tune.criterion).needs is Needs.ADAPTER else [score]


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


def unattaching_passes(tune: TuneOptions, *, own_adapter: bool) -> list[Pass]:
    """What takes an adapter off again that was attached here and never trained."""
    return [] if tune.steps or own_adapter else [DetachPass()]


def choices(tune: TuneOptions, data_options: DataOptions, target: Target) -> Mapping[str, Any]:
    """What of the options made the decision, as plain values, for the plan."""
    names = ("steps", "seed", "revival", "schedule", "depth_scores") if tune.steps else ("steps", "seed")
    made = {name: plain(getattr(tune, name)) for name in names}
    if tune.distill:
        made["distill"] = plain(tune.distill)
    made["importance"] = plain(tune.importance_for(target))
    scored = not tune.steps or tune.one_shot
    return {**made, "samples": data_options.samples, "batch_size": tune.batch_size} if scored else made
