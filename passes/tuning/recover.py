"""Recover: train the compact model at its own speed, keep the best by held-out loss, and merge."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from passes.errors import ModelError, OptionError, PostconditionError, PreconditionError
from passes.models import Adapter, Collate, Parity, base_model, heldout_loss, lora_config, lora_weights, parameter_at
from passes.options import RecoverOptions
from passes.pipeline import Pass, PassResult, Program, Progress, Recovery, plain, silent
from passes.tuning.teacher import OtherModel
from passes.tuning.trainer import TrainingRun, train
from passes.tuning.tune import LOSSES_LOGGED, width_scaled_rate


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
    """Takes the held-out loss every few steps, remembers the best adapter, and stops when it gets no better."""

    def __init__(self, model: PeftModel, evaluate: Any, options: RecoverOptions, progress: Progress = silent) -> None:
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
        loss: float = self._evaluate(self._model)
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
        looked = [step for step, _ in self.evaluations if step > self.best_step]
        control.should_training_stop |= len(looked) >= self._options.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model its best adapter back."""
        for parameter, best in zip(self._trained(), self._best, strict=True):
            parameter.copy_(best)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]


class RecoverPass(Pass):
    """Gives the compact model a fresh adapter, trains it without masks, and merges its best state.

    ``data`` yields the model's inputs and labels. ``heldout`` likewise: data that nothing was trained, scored or
    calibrated on, and that is not what the result is measured on in the end. ``teacher`` is a model to distil from:
    the dense source, if it is in memory. The result never has a higher held-out loss than the model that came in.
    """

    name = "recover"

    def __init__(
        self,
        data: Dataset[dict[str, torch.Tensor]],
        heldout: Dataset[dict[str, torch.Tensor]],
        options: RecoverOptions = RecoverOptions(),
        progress: Progress = silent,
        collate: Collate | None = None,
        teacher: torch.nn.Module | None = None,
    ) -> None:
        if options.distill is not None and teacher is None:
            raise OptionError("recovery can distil only from a dense model in memory: give a teacher")
        self._data, self._heldout, self._options, self._progress = data, heldout, options, progress
        self._collate, self._teacher = collate, teacher

    @property
    def options(self) -> Mapping[str, Any]:
        """The options as plain values."""
        return dict(plain(self._options))

    def requires(self, program: Program) -> None:
        """A traced program whose model is compact: no masks, no adapter."""
        if program.graph is None or program.masks is not None or isinstance(program.model, PeftModel):
            raise PreconditionError("pass 'recover' needs a compact model: run ShrinkPass first")

    def call(self, program: Program) -> PassResult:
        """Train, go back to the best state, and merge it; or leave the model as it came in, bit for bit."""
        options, compact, expected = self._options, base_model(program.model), program.respond()
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            model = get_peft_model(compact, lora_config(options.lora, program.traced, compact))
        callback = RecoverCallback(model, self._loss, options, self._progress)
        callback.look(0)
        course = self._train(model, callback)
        callback.restore()
        model.eval()
        before = callback.evaluations[0][1]
        adapter = Adapter.of(model)
        recovered, after = self._merged(model, before if callback.best_step else -float("inf"))
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
        done = replace(program, model=recovered, recovery=Recovery(adapter, report.before, report.after))
        return PassResult(done.expecting_itself(), modified=True, report=report)

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """The held-out loss, taken once more, has not risen."""
        if after.recovery is None:
            return ()
        loss = self._loss(after.model)
        if not loss <= after.recovery.before:
            raise PostconditionError(
                f"pass 'recover' raised the held-out loss from {after.recovery.before:.6f} to {loss:.6f}"
            )
        return ()

    def _loss(self, model: PreTrainedModel | PeftModel) -> float:
        return heldout_loss(model, self._heldout, self._options.batch_size, self._collate)

    def _train(self, model: PeftModel, callback: RecoverCallback) -> TrainingRun:
        options = self._options
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            return train(
                model,
                self._arguments(Path(folder), model),
                callback,
                teacher=OtherModel(self._teacher) if self._teacher is not None else None,
                distill=options.distill,
                train_dataset=self._data,
                data_collator=self._collate,
            )

    def _arguments(self, folder: Path, model: PeftModel) -> TrainingArguments:
        options = self._options
        return TrainingArguments(
            output_dir=str(folder),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.gradient_accumulation,
            learning_rate=options.learning_rate or width_scaled_rate(base_model(model).config.hidden_size),
            lr_scheduler_type=options.lr_scheduler,
            max_grad_norm=options.max_grad_norm,
            bf16=options.bf16,
            use_cpu=not torch.accelerator.is_available(),  # or bf16 is refused on a CPU
            seed=options.seed,
            save_strategy="no",
            logging_steps=max(1, options.steps // LOSSES_LOGGED),
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        )

    def _merged(self, model: PeftModel, limit: float) -> tuple[PreTrainedModel, float | None]:
        """The model with the adapter in its weights and its held-out loss; or without, and None, if that is too high.

        Merging rounds, so the loss is taken again; the old weights are held until then.
        """
        old = {name: parameter_at(model, name).detach().cpu().clone() for name in lora_weights(model)}
        try:
            merged = cast(PreTrainedModel, model.merge_and_unload(safe_merge=True))
        except ValueError as error:
            raise ModelError(f"merging the adapter gives weights that are not finite: {error}") from error
        merged.requires_grad_(False)
        loss = self._loss(merged)
        if loss <= limit:
            return merged, loss
        with torch.no_grad():
            for name, tensor in old.items():
                parameter_at(merged, name).copy_(tensor)
        return merged, None
