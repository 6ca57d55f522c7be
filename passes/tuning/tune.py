"""Tune: train A and B under masks, score, and re-mask along the schedule (LoRAPrune, algorithm 1)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments

from passes.budget import LatencyModel, Layout, Solver, Target
from passes.checked import check_numbers
from passes.criteria import (
    AUTO,
    DEPTH_SCORES,
    ImportanceOptions,
    MeasuredDepth,
    best_criterion,
    criterion_named,
    make_criterion,
)
from passes.errors import MissingFileError, OptionError, PreconditionError
from passes.graph import PruningGraph, full_masks
from passes.pipeline import Pass, PassResult, Program, RunContext, plain
from passes.tuning.arguments import training_arguments
from passes.tuning.callback import Event, PruningCallback, PruningPolicy, PruningState
from passes.tuning.distill import DistillOptions
from passes.tuning.rates import stage_rates
from passes.tuning.schedule import ONE_SHOT, Schedule
from passes.tuning.stages import SnapshotOptions
from passes.tuning.teacher import FrozenBase
from passes.tuning.trainer import TrainingRun, train

SKIP_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """How the adapters train.

    ``steps`` optimizer steps of ``batch_size`` × ``gradient_accumulation`` sequences; 0 is for ``lpc.compress`` alone,
    which then trains nothing and scores calibration data (``ScorePass``). ``batch_size``, ``seed`` and ``checkpoints``
    are by default the run's (``RunContext``); ``lpc.compress`` takes what is said here for the whole run. ``bf16`` runs
    the forward pass under autocast. With ``checkpoints`` the Trainer saves there every ``save_every`` steps; ``resume``
    goes on from the latest one. ``learning_rate`` is the peak; by default it follows from the hidden size
    (``width_scaled_rate``). ``criterion`` ranks the units, by name (``CRITERIA``, docs/criteria.md), and ``schedule``
    says when they go; by default both are what was measured best (``settled``). ``depth_scores`` ranks layers and
    blocks: ``summed`` over what is in them, or ``skipped``, the rise of the loss without them, measured at the start.
    ``distill`` draws the model to its own dense base as well (None: the task's loss alone); scores come from the
    gradients of whatever loss is trained.
    """

    steps: int = 200
    batch_size: int | None = None
    gradient_accumulation: int = 1
    learning_rate: float | None = None
    lr_scheduler: str = "cosine"
    max_grad_norm: float = 1.0
    bf16: bool = False
    seed: int | None = None
    criterion: str = AUTO
    depth_scores: str = "summed"
    revival: bool = True
    importance: ImportanceOptions = ImportanceOptions()
    schedule: Schedule | None = None
    distill: DistillOptions | None = DistillOptions()
    checkpoints: Path | None = None
    save_every: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        check_numbers(self)
        for name, least in (("steps", 0), ("batch_size", 1), ("gradient_accumulation", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"{name} must be at least {least}, got {value}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise OptionError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.criterion != AUTO:
            criterion_named(self.criterion)
        if self.depth_scores not in DEPTH_SCORES:
            raise OptionError(f"depth_scores must be one of {', '.join(DEPTH_SCORES)}, got {self.depth_scores!r}")
        if self.steps == 0 and self.checkpoints is not None:
            raise OptionError("steps=0 trains nothing, so there are no checkpoints: leave checkpoints out")

    def settled(self, graph: PruningGraph | None = None) -> TuneOptions:
        """The options with nothing left open, and with what the criterion sets itself, as ``loraprune-code`` does.

        The criterion ``auto`` is the best that ranks the graph; on a progressive schedule, or without a graph, it is
        ``loraprune``. No schedule is ``ONE_SHOT`` for a criterion that ranks on calibration data, else ``Schedule()``.
        """
        progressive = self.schedule is not None and not self.schedule.one_shot
        open_ = self.criterion == AUTO
        name = self.criterion if not open_ else "loraprune" if progressive or graph is None else best_criterion(graph)
        entry = criterion_named(name)
        schedule = self.schedule or (ONE_SHOT if entry.one_shot else Schedule())
        importance, revival = entry.settle(self.importance), self.revival and entry.revival
        return replace(self, criterion=name, schedule=schedule, importance=importance, revival=revival)

    @property
    def one_shot(self) -> bool:
        """Whether all goes before the first step, in settled options."""
        return self.schedule is not None and self.schedule.one_shot

    def importance_for(self, target: Target) -> ImportanceOptions:
        """The importance options, with what the layout decides where they leave it open."""
        if self.importance.normalise is not None:
            return self.importance
        return replace(self.importance, normalise=target.layout is Layout.UNIFORM)

    def check_checkpoints(self, folder: Path | None) -> None:
        """Raise OptionError if checkpoints are to be saved or gone on from, and there is no folder for them."""
        if (self.resume or self.save_every) and folder is None:
            raise OptionError("save_every and resume need a folder for the checkpoints: set checkpoints")

    def arguments(self, run: RunContext, folder: Path, model: PeftModel) -> TrainingArguments:
        """The Trainer's arguments, with files in ``folder``."""
        saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": self.save_every} if self.save_every else {}
        return training_arguments(self, run, folder, model, max_grad_norm=0.0, **saving)

    def latest_checkpoint(self, folder: Path | None) -> Path | None:
        """The checkpoint to go on from, if ``resume`` is set. Raises MissingFileError if there is none."""
        if not self.resume or folder is None:
            return None
        found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        if not found:
            raise MissingFileError(f"there is no checkpoint-* to resume from in {folder}")
        return found[-1]


@dataclass(frozen=True)
class TuneReport:
    """The course of the training: (step, mean loss in nats a token since the last entry), and the mask events.

    ``teacher_share``: what part of the time the teacher's forward passes took; 0 without distillation.
    """

    losses: tuple[tuple[int, float], ...]
    events: tuple[Event, ...]
    skipped_updates: int
    teacher_share: float = 0.0


class TunePass(Pass):
    """Trains the adapters with the transformers Trainer while masks grow to the target. Base weights stay as they are.

    ``data`` yields the model's inputs, labels included, so that the model computes its own loss. ``latency`` is needed
    for a budget of latency.
    ``snapshots``: ratios on the way to the target's at which to leave a snapshot in the program. With the schedule
    ``ONE_SHOT`` the masks are those that the program brings; else it starts with all units.
    """

    name = "tune"

    def __init__(
        self,
        target: Target,
        data: Dataset[dict[str, torch.Tensor]],
        options: TuneOptions = TuneOptions(),
        latency: LatencyModel | None = None,
        snapshots: SnapshotOptions | None = None,
    ) -> None:
        if options.steps == 0:
            raise OptionError("steps=0 trains nothing: score calibration data with ScorePass, or give steps=1 or more")
        self._target, self._data, self._options = target, data, options.settled()
        self._latency, self._snapshots = latency, snapshots

    @property
    def options(self) -> Mapping[str, Any]:
        """Target and options as plain values."""
        snapshots = {"snapshots": plain(self._snapshots)} if self._snapshots else {}
        return {"target": plain(self._target), **plain(self._options), **snapshots}

    def requires(self, program: Program) -> None:
        """A traced program with an adapter."""
        if program.graph is None or not isinstance(program.model, PeftModel):
            raise PreconditionError(
                "pass 'tune' needs a traced program with an adapter: run TracePass and AttachPass first"
            )
        if self._options.one_shot and program.masks is None:
            raise PreconditionError("pass 'tune' prunes nothing with a one-shot schedule: run ScorePass before it")
        if self._options.distill is not None:
            done = program.compensation
            if done is not None and not done.originals and any(solved.changed for solved in done.solved):
                raise PreconditionError(
                    "pass 'tune' is to distil from the dense model, whose weights a compensation has replaced: "
                    "run CompensatePass with keep_originals=True"
                )

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Train, and leave the final masks in the program."""
        assert isinstance(program.model, PeftModel)
        model, graph, options = program.model, program.traced, self._options
        run = run.narrowed(options)
        options.check_checkpoints(run.checkpoints)
        policy = PruningPolicy(
            solver=Solver.of(self._target, graph, self._latency),
            schedule=options.schedule or Schedule(),
            revival=options.revival,
            max_grad_norm=options.max_grad_norm,
            snapshots=self._snapshots,
        )
        course = policy.course(options.steps)
        rates = stage_rates(options.lr_scheduler, course.lengths) if self._snapshots else None
        criterion = make_criterion(options.criterion, graph, options.importance_for(self._target), run.seed)
        if options.depth_scores == "skipped":
            criterion = MeasuredDepth(criterion, graph, partial(self._first_batches, run))
        start = PruningState(full_masks(graph))
        if options.one_shot and program.masks is not None:
            start = PruningState(dict(program.masks), dict(program.scores or {}))
        callback = PruningCallback(model, graph, criterion, policy, run.progress, start)
        trained = self._train(program, model, callback, rates, run)
        left = tuple(callback.state.snapshots)
        tuned = replace(program, model=model.eval(), masks=callback.state.masks, snapshots=left)
        tuned = replace(tuned, scores=callback.state.chosen_by)
        report = TuneReport(trained.losses, tuple(callback.state.events), callback.state.skipped, trained.teacher_share)
        return PassResult(tuned.expecting_itself(), modified=True, report=report)

    def _first_batches(self, run: RunContext) -> Iterator[dict[str, torch.Tensor]]:
        """The first few batches of the data, in order."""
        loader = DataLoader(self._data, batch_size=run.batch_size, collate_fn=run.collate)
        return islice(iter(loader), SKIP_BATCHES)

    def _train(
        self,
        program: Program,
        model: PeftModel,
        callback: PruningCallback,
        rates: Sequence[float] | None,
        run: RunContext,
    ) -> TrainingRun:
        options, teacher = self._options, None
        if options.distill is not None:
            originals = program.compensation.originals if program.compensation else {}
            teacher = FrozenBase(model, callback.masks_off, originals)
        checkpoint = options.latest_checkpoint(run.checkpoints)
        with ExitStack() as stack:
            folder = run.checkpoints or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.callback(callback.close)
            if checkpoint is not None:
                callback.restore(checkpoint)
            return train(
                model,
                options.arguments(run, folder, model),
                callback,
                rates=rates,
                teacher=teacher,
                distill=options.distill,
                resume_from=checkpoint,
                train_dataset=self._data,
                data_collator=run.collate,
            )
