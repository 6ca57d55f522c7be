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

from passes.budget import LatencyModel, Solver
from passes.criteria import MeasuredDepth, criterion_named, make_criterion
from passes.errors import OptionError, PreconditionError
from passes.graph import full_masks
from passes.models import Adapter, Collate, Drawing, Task, base_model, packed_weights, task_of
from passes.options import Schedule, SnapshotOptions, Target, TuneOptions
from passes.pipeline import (
    Pass,
    PassRecord,
    PassResult,
    Program,
    RunContext,
    load_snapshots,
    plain,
    save_choice,
    with_choice,
)
from passes.ranks import count, sharded
from passes.tuning.arguments import check_recomputing, training_arguments, with_less_memory
from passes.tuning.callback import Event, PruningCallback, PruningPolicy, PruningState
from passes.tuning.checkpoints import KEPT, Checkpoints, latest_checkpoint
from passes.tuning.rates import stage_rates
from passes.tuning.recall import wear
from passes.tuning.settle import settled
from passes.tuning.teacher import FrozenBase
from passes.tuning.trainer import TrainingRun, steps_done, train
from passes.tuning.watching import WatchCallback, log_folder

SKIP_BATCHES = 4


def arguments_of(
    options: TuneOptions, run: RunContext, folder: Path, model: PeftModel, **more: Any
) -> TrainingArguments:
    """The Trainer's arguments, with files in ``folder``."""
    return training_arguments(options, run, folder, model, max_grad_norm=0.0, **more)


@dataclass(frozen=True)
class TuneReport:
    """The course of the training: (step, mean loss in nats a token since the last entry), and the mask events.

    ``teacher_share``: what part of the time the teacher's forward passes took; 0 without distillation. ``heldout``:
    (step, loss on held-out data) where that was watched. ``rates``: (step, learning rate).
    """

    losses: tuple[tuple[int, float], ...]
    events: tuple[Event, ...]
    skipped_updates: int
    teacher_share: float = 0.0
    heldout: tuple[tuple[int, float], ...] = ()
    rates: tuple[tuple[int, float], ...] = ()


class TunePass(Pass):
    """Trains the adapters with the transformers Trainer while masks grow to the target. Base weights stay as they are.

    As soon as all units that go are known, what is trained is the compact model (``passes.tuning.small``); the program
    gets the dense model back, with the adapter in its places.

    ``data`` yields the model's inputs, labels included, so that the model computes its own loss. ``latency`` is needed
    for a budget of latency.
    ``snapshots``: ratios on the way to the target's at which to leave a snapshot in the program. With the schedule
    ``ONE_SHOT`` the masks are those that the program brings; else it starts with all units.
    """

    name = "tune"
    reports = TuneReport

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
        self._target, self._data, self._options = target, data, settled(options)
        if sharded() and not self._options.one_shot:
            raise OptionError(
                f"with sharded weights (FSDP) units go before tuning, and {self._options.criterion!r} ranks while it "
                "lasts: choose a one-shot schedule (--one-shot)"
            )
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
        check_recomputing(self._options, program.model)
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
            score_every=options.score_every,
            memory=criterion_named(options.criterion).memory(options.importance),
        )
        course = policy.course(options.steps)
        rates = stage_rates(options.lr_scheduler, course.lengths) if self._snapshots else None
        criterion = make_criterion(options.criterion, graph, options.importance_for(self._target), run.seed)
        if options.depth_scores == "skipped":
            criterion = MeasuredDepth(criterion, graph, partial(self._first_batches, run))
        start = PruningState(full_masks(graph))
        if options.one_shot and program.masks is not None:
            start = PruningState(dict(program.masks), dict(program.scores or {}))
        callback = PruningCallback(model, graph, criterion, policy, run.progress, start, small=self._small(model))
        trained = self._train(program, model, callback, rates, run)
        callback.give_back()
        left = tuple(callback.state.snapshots)
        tuned = replace(program, model=model.eval(), masks=callback.state.masks, snapshots=left)
        tuned = replace(tuned, scores=callback.state.chosen_by)
        events, skipped = tuple(callback.state.events), callback.state.skipped
        report = TuneReport(trained.losses, events, skipped, trained.teacher_share, trained.heldout, trained.rates)
        return PassResult(tuned.expecting_itself(), modified=True, report=report)

    def keep(self, after: Program, folder: Path) -> bool:
        """The adapter, the masks with their scores, and the snapshots."""
        assert isinstance(after.model, PeftModel)
        Adapter.of(after.model).save(folder)
        save_choice(after, folder)
        for snapshot in after.snapshots:
            snapshot.save(folder)
        return True

    def restore(self, before: Program, folder: Path, record: PassRecord) -> Program:
        """The program with this adapter, under these masks."""
        assert isinstance(before.model, PeftModel)
        adapter = Adapter.load(folder)
        wear(before.model, adapter)
        snapshots = tuple(load_snapshots(folder, adapter.config))
        tuned = replace(before, model=before.model.eval(), snapshots=snapshots)
        return with_choice(tuned, folder).expecting_itself()

    def with_less_memory(self, run: RunContext) -> str:
        """Smaller batches and more of them, or activations computed again."""
        return with_less_memory(self._options, run)

    def _first_batches(self, run: RunContext) -> Iterator[dict[str, torch.Tensor]]:
        """The first few batches of the data, in order."""
        loader = DataLoader(self._data, batch_size=run.batch_size, collate_fn=run.collate)
        return islice(iter(loader), SKIP_BATCHES)

    def _small(self, model: PeftModel) -> bool:
        """Whether the compact model may be trained: neither packed nor sharded weights are cut, nor a wrapped model."""
        fits = not sharded() and not packed_weights(base_model(model))
        return self._options.small and fits and (count() == 1 or self._options.one_shot)

    def _collate(self, model: PeftModel, run: RunContext) -> Collate | None:
        """As the run says; labels of embedding models are drawn where gradients rank units, or there were none."""
        entry = criterion_named(self._options.criterion)
        drawn = task_of(base_model(model)) is Task.FEATURE_EXTRACTION and not self._options.one_shot
        return Drawing(run.collate) if drawn and entry.sees_gradients and run.collate is not None else run.collate

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
        checkpoint = latest_checkpoint(options, run.checkpoints)
        with ExitStack() as stack:
            folder = run.checkpoints or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.callback(callback.close)
            own = options.checkpoints is not None
            saves = run.checkpoints is not None and not sharded()  # a sharded checkpoint is another format
            saving = Checkpoints(options.save_every, None if own else KEPT) if saves else None
            if checkpoint is not None:
                callback.restore(checkpoint)
            trained = callback.to_train(options.steps, steps_done(checkpoint) if checkpoint is not None else 0)
            watching, names = WatchCallback.of(callback, run, options), list(options.report_to)
            stack.enter_context(log_folder(names))
            return train(
                trained,
                arguments_of(options, run, folder, trained, report_to=names or "none"),
                [each for each in (callback, watching, saving) if each is not None],
                rates=rates,
                seen=watching.seen if watching else None,
                teacher=teacher,
                distill=options.distill,
                recompute=options.gradient_checkpointing,
                resume_from=checkpoint,
                in_pieces=options.one_shot or criterion_named(options.criterion).additive,
                train_dataset=self._data,
                data_collator=self._collate(model, run),
            )
