"""Tune: train A and B under masks, score, and re-mask along the schedule (LoRAPrune, algorithm 1)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments

from passes.budget import LatencyModel, Solver
from passes.criteria import MeasuredDepth, make_criterion
from passes.errors import OptionError, PreconditionError
from passes.graph import full_masks
from passes.models import Collate, base_model
from passes.options import Schedule, SnapshotOptions, Target, TuneOptions
from passes.pipeline import Pass, PassResult, Program, Progress, plain, silent
from passes.tuning.callback import Event, PruningCallback, PruningPolicy, PruningState
from passes.tuning.rates import stage_rates
from passes.tuning.settle import settled
from passes.tuning.teacher import FrozenBase
from passes.tuning.trainer import TrainingRun, train

LOSSES_LOGGED = 20
SKIP_BATCHES = 4


def width_scaled_rate(hidden_size: int) -> float:
    """The default peak learning rate of the adapters: 0.64 / hidden size, at most 0.01.

    For Adam the best rate of a hidden matrix falls as 1 / width (Yang et al., arXiv 2203.03466, table 3). The constant
    was measured at hidden size 64 (docs/quality.md) and gives 1.6e-4 at 4096, near the paper's 1e-4 for 7B.
    """
    return min(0.01, 0.64 / hidden_size)


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

    ``data`` yields the model's inputs, labels included, so that the model computes its own loss; ``collate`` makes a
    batch of them (default: stack, for items of one length). ``latency`` is needed for a budget of latency.
    ``snapshots``: ratios on the way to the target's at which to leave a snapshot in the program. With the schedule
    ``ONE_SHOT`` the masks are those that the program brings; else it starts with all units.
    """

    name = "tune"

    def __init__(
        self,
        target: Target,
        data: Dataset[dict[str, torch.Tensor]],
        options: TuneOptions = TuneOptions(),
        progress: Progress = silent,
        collate: Collate | None = None,
        latency: LatencyModel | None = None,
        snapshots: SnapshotOptions | None = None,
    ) -> None:
        if options.steps == 0:
            raise OptionError("steps=0 trains nothing: score calibration data with ScorePass, or give steps=1 or more")
        self._target, self._data, self._options, self._progress = target, data, settled(options), progress
        self._collate, self._latency, self._snapshots = collate, latency, snapshots

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

    def call(self, program: Program) -> PassResult:
        """Train, and leave the final masks in the program."""
        assert isinstance(program.model, PeftModel)
        model, graph, options = program.model, program.traced, self._options
        policy = PruningPolicy(
            solver=Solver.of(self._target, graph, self._latency),
            schedule=options.schedule or Schedule(),
            revival=options.revival,
            max_grad_norm=options.max_grad_norm,
            snapshots=self._snapshots,
        )
        course = policy.course(options.steps)
        rates = stage_rates(options.lr_scheduler, course.lengths) if self._snapshots else None
        criterion = make_criterion(options.criterion, graph, options.importance_for(self._target), options.seed)
        if options.depth_scores == "skipped":
            criterion = MeasuredDepth(criterion, graph, self._first_batches)
        start = PruningState(full_masks(graph))
        if options.one_shot and program.masks is not None:
            start = PruningState(dict(program.masks), dict(program.scores or {}))
        callback = PruningCallback(model, graph, criterion, policy, self._progress, start)
        trained = self._train(program, model, callback, rates)
        left = tuple(callback.state.snapshots)
        tuned = replace(program, model=model.eval(), masks=callback.state.masks, snapshots=left)
        tuned = replace(tuned, scores=callback.state.chosen_by)
        report = TuneReport(trained.losses, tuple(callback.state.events), callback.state.skipped, trained.teacher_share)
        return PassResult(tuned.expecting_itself(), modified=True, report=report)

    def _first_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The first few batches of the data, in order."""
        loader = DataLoader(self._data, batch_size=self._options.batch_size, collate_fn=self._collate)
        return islice(iter(loader), SKIP_BATCHES)

    def _train(
        self, program: Program, model: PeftModel, callback: PruningCallback, rates: Sequence[float] | None
    ) -> TrainingRun:
        options, teacher = self._options, None
        if options.distill is not None:
            originals = program.compensation.originals if program.compensation else {}
            teacher = FrozenBase(model, callback.masks_off, originals)
        checkpoint = options.latest_checkpoint()
        with ExitStack() as stack:
            folder = options.checkpoints or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.callback(callback.close)
            if checkpoint is not None:
                callback.restore(checkpoint)
            return train(
                model,
                self._arguments(folder, model),
                callback,
                rates=rates,
                teacher=teacher,
                distill=options.distill,
                resume_from=checkpoint,
                train_dataset=self._data,
                data_collator=self._collate,
            )

    def _arguments(self, folder: Path, model: PeftModel) -> TrainingArguments:
        options = self._options
        learning_rate = options.learning_rate or width_scaled_rate(base_model(model).config.hidden_size)
        return TrainingArguments(
            output_dir=str(folder),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.gradient_accumulation,
            learning_rate=learning_rate,
            lr_scheduler_type=options.lr_scheduler,
            max_grad_norm=0.0,
            bf16=options.bf16,
            use_cpu=not torch.accelerator.is_available(),  # or bf16 is refused on a CPU
            seed=options.seed,
            save_strategy="steps" if options.save_every else "no",
            save_steps=options.save_every or options.steps,
            logging_steps=max(1, options.steps // LOSSES_LOGGED),
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
