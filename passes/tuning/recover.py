"""Recover: train the compact model at its own speed, keep the best by held-out loss, and merge."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from passes.errors import MissingFileError, ModelError, OptionError, PreconditionError
from passes.models import Adapter, base_model, heldout_loss, lora_config, lora_weights, parameter_at
from passes.options import RecoverOptions
from passes.pipeline import Pass, PassRecord, PassResult, Program, Progress, Recovery, RunContext, plain, silent
from passes.ranks import told_by_first
from passes.tuning.arguments import check_recomputing, training_arguments, with_less_memory
from passes.tuning.checkpoints import Checkpoints, last_whole
from passes.tuning.recall import wear
from passes.tuning.teacher import OtherModel
from passes.tuning.trainer import TrainingRun, train

HeldOutLoss: TypeAlias = "Callable[[PreTrainedModel | PeftModel], float]"

STATE_FILE = "lpc_recovery.safetensors"
"""Beside a checkpoint of the Trainer: the best adapter so far, and the losses that were seen."""


@dataclass(frozen=True)
class RecoverReport:
    """Held-out loss before and after, and the course: (step, held-out loss) and (step, mean training loss).

    ``best_step`` is the step whose adapter was merged. ``kept`` is false if none was better than the model that came
    in, which then is the result.
    """

    before: float
    after: float
    best_step: int
    kept: bool
    evaluations: tuple[tuple[int, float], ...]
    losses: tuple[tuple[int, float], ...]
    teacher_share: float = 0.0


class RecoverCallback(TrainerCallback):  # type: ignore[misc]
    """Takes the held-out loss every few steps, remembers the best adapter, and stops when it gets no better.

    What it knows is saved beside each Trainer checkpoint.
    """

    def __init__(
        self, model: PeftModel, evaluate: HeldOutLoss, options: RecoverOptions, progress: Progress = silent
    ) -> None:
        self._model, self._evaluate, self._options, self._progress = model, evaluate, options, progress
        self._best: list[torch.Tensor] = []
        self.evaluations: list[tuple[int, float]] = []
        self.best_step = 0

    @property
    def best_loss(self) -> float:
        """The lowest held-out loss so far."""
        return min(loss for _, loss in self.evaluations)

    def look(self, step: int) -> bool:
        """Take the held-out loss; whether it is a new best, which is then remembered."""
        loss = told_by_first(self._evaluate(self._model))
        better = not self.evaluations or loss < self.best_loss
        self.evaluations.append((step, loss))
        if better:
            self.best_step, self._best = step, [p.detach().clone() for p in self._trained()]
        return better

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look, if it is time, and stop if there was nothing better for long."""
        self._progress("recover", state.global_step, state.max_steps)
        if state.global_step % self._options.every and state.global_step < state.max_steps:
            return
        self.look(state.global_step)
        control.should_training_stop |= self.is_done

    @property
    def is_done(self) -> bool:
        """Whether there was nothing better for long."""
        return sum(step > self.best_step for step, _ in self.evaluations) >= self._options.patience

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save what is known beside the checkpoint that the Trainer just wrote."""
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            said = {"options": self._told(), "evaluations": self.evaluations, "best_step": self.best_step}
            tensors = {str(place): best.contiguous() for place, best in enumerate(self._best)}
            save_file(tensors, folder / STATE_FILE, metadata={name: json.dumps(value) for name, value in said.items()})

    def restore(self, folder: Path) -> None:
        """Know what was known at a checkpoint. Raises MissingFileError, OptionError if it is of other options."""
        if not (folder / STATE_FILE).is_file():
            raise MissingFileError(f"there is no {STATE_FILE} in {folder}: it is not a checkpoint of a recovery")
        with safe_open(folder / STATE_FILE, framework="pt") as file:
            said = {name: json.loads(value) for name, value in file.metadata().items()}
            best = [file.get_tensor(str(place)) for place in range(len(file.keys()))]
        if said["options"] != self._told():
            raise OptionError(f"{folder} is of a recovery with other options: go on with those, or start anew")
        self.best_step = int(said["best_step"])
        self.evaluations = [(int(step), float(loss)) for step, loss in said["evaluations"]]
        self._best = [tensor.to(now.device) for tensor, now in zip(best, self._trained(), strict=True)]

    def _told(self) -> Any:
        return json.loads(json.dumps(plain(self._options)))

    @torch.no_grad()
    def take_best(self) -> None:
        """Give the model its best adapter back."""
        for parameter, best in zip(self._trained(), self._best, strict=True):
            parameter.copy_(best)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]


class RecoverPass(Pass):
    """Gives the compact model a fresh adapter, trains it without masks, and merges its best state.

    ``data`` yields the model's inputs and labels. ``heldout`` likewise: data that nothing was trained, scored or
    calibrated on, and that is not what the result is measured on in the end. ``teacher`` gives a model to distil from,
    the dense source; it is asked for it when training begins. ``save_every``: steps between two checkpoints, as in
    ``TuneOptions``, where the run has a folder for them. The result never has a higher held-out loss than the
    model that came in.
    """

    name = "recover"
    reports = RecoverReport

    def __init__(
        self,
        data: Dataset[dict[str, torch.Tensor]],
        heldout: Dataset[dict[str, torch.Tensor]],
        options: RecoverOptions = RecoverOptions(),
        teacher: Callable[[], torch.nn.Module] | None = None,
        save_every: int | None = None,
    ) -> None:
        if options.distill is not None and teacher is None:
            raise OptionError("recovery can distil only from a dense model: give a teacher")
        self._data, self._heldout, self._options, self._teacher = data, heldout, options, teacher
        self._save_every = save_every

    @property
    def options(self) -> Mapping[str, Any]:
        """The options as plain values."""
        return dict(plain(self._options))

    def requires(self, program: Program) -> None:
        """A traced program whose model is compact: no masks, no adapter."""
        if program.graph is None or program.masks is not None or isinstance(program.model, PeftModel):
            raise PreconditionError("pass 'recover' needs a compact model: run ShrinkPass first")

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Train, go back to the best state, and merge it; or leave the model as it came in, bit for bit."""
        options, expected = self._options, program.respond()
        run = run.narrowed(options)
        loss = partial(self._loss, run)
        model = self._adapted(program, run.seed)
        check_recomputing(options, model)
        callback = RecoverCallback(model, loss, options, run.progress)
        course = self._train(model, callback, run)
        callback.take_best()
        model.eval()
        before = callback.evaluations[0][1]
        adapter = Adapter.of(model)
        recovered, after = _merged(model, loss, before if callback.best_step else -float("inf"))
        kept = after is not None
        report = RecoverReport(
            before=before,
            after=before if after is None else after,
            best_step=callback.best_step,
            kept=kept,
            evaluations=tuple(callback.evaluations),
            losses=course.losses,
            teacher_share=course.teacher_share,
        )
        if not kept:
            same = replace(program, model=recovered)
            parity = same.respond(expected).compare(self.name, expected, 0.0)
            return PassResult(same, modified=False, report=report, parity=(parity,))
        done = replace(program, model=recovered, recovery=Recovery(adapter))
        return PassResult(done.expecting_itself(), modified=True, report=report)

    def with_less_memory(self, run: RunContext) -> str:
        """Smaller batches and more of them, or activations computed again."""
        return with_less_memory(self._options, run)

    def keep(self, after: Program, folder: Path) -> bool:
        """The adapter, if it made the model better."""
        if after.recovery is not None:
            after.recovery.save(folder)
        return True

    def restore(self, before: Program, folder: Path, record: PassRecord) -> Program:
        """The program with this adapter merged."""
        assert isinstance(record.report, RecoverReport)
        if not record.report.kept:
            return before
        model = self._adapted(before, 0)
        wear(model, Recovery.load(folder).adapter)
        recovery = Recovery(Adapter.of(model))
        merged, _ = _merged(model.eval(), lambda _: 0.0, float("inf"))
        return replace(before, model=merged, recovery=recovery).expecting_itself()

    def _adapted(self, program: Program, seed: int) -> PeftModel:
        """The compact model with a fresh adapter."""
        compact = base_model(program.model)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(compact, lora_config(self._options.lora, program.traced, compact))

    def _loss(self, run: RunContext, model: PreTrainedModel | PeftModel) -> float:
        return heldout_loss(model, self._heldout, run.batch_size, run.collate)

    def _train(self, model: PeftModel, callback: RecoverCallback, run: RunContext) -> TrainingRun:
        """Train from the last whole checkpoint of the run, if there is one."""
        options = self._options
        checkpoint = last_whole(run.checkpoints) if run.checkpoints is not None else None
        if checkpoint is None:
            callback.look(0)
        else:
            callback.restore(checkpoint)
        with ExitStack() as stack:
            folder = run.checkpoints or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            return train(
                model,
                training_arguments(options, run, folder, model, max_grad_norm=options.max_grad_norm),
                [callback, Checkpoints(self._save_every)] if run.checkpoints else [callback],
                teacher=OtherModel(self._teacher()) if self._teacher is not None else None,
                distill=options.distill,
                recompute=options.gradient_checkpointing,
                resume_from=checkpoint,
                finished=callback.is_done,
                train_dataset=self._data,
                data_collator=run.collate,
            )


def _merged(model: PeftModel, heldout: HeldOutLoss, limit: float) -> tuple[PreTrainedModel, float | None]:
    """The model with the adapter in its weights and its held-out loss; or without, and None, if that is too high.

    Merging rounds, so the loss is taken again; the old weights are held until then.
    """
    old = {name: parameter_at(model, name).detach().cpu().clone() for name in lora_weights(model)}
    try:
        merged = cast(PreTrainedModel, model.merge_and_unload(safe_merge=True))
    except ValueError as error:
        raise ModelError(f"merging the adapter gives weights that are not finite: {error}") from error
    merged.requires_grad_(False)
    loss = heldout(merged)
    if loss <= limit:
        return merged, loss
    with torch.no_grad():
        for name, tensor in old.items():
            parameter_at(merged, name).copy_(tensor)
    return merged, None
