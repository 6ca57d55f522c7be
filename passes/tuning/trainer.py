"""What all training shares: a Trainer that leaves the caller's random states and the model's configuration alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback, TrainerState, TrainingArguments

from passes.models import Adapter, active_adapter, base_model, vendor
from passes.options import DistillOptions
from passes.tuning.arguments import training_on
from passes.tuning.distill import DistillTrainer
from passes.tuning.lean import LeanTrainer
from passes.tuning.recall import wear
from passes.tuning.sharded import whole_afterwards
from passes.tuning.teacher import Teacher


@dataclass(frozen=True)
class TrainingRun:
    """How a training went: (step, mean loss since the last entry), and seconds in all and in the teacher's passes.

    ``heldout``: (step, loss on held-out data), where that was measured on the way. ``rates``: (step, learning rate).
    """

    losses: tuple[tuple[int, float], ...]
    seconds: float
    teacher_seconds: float
    heldout: tuple[tuple[int, float], ...] = ()
    rates: tuple[tuple[int, float], ...] = ()

    @classmethod
    def told(cls, state: TrainerState, seconds: float, teacher_seconds: float) -> TrainingRun:
        """What the Trainer has logged."""
        losses, heldout, rates = (_logged(state, name) for name in ("loss", HELDOUT_LOSS, "learning_rate"))
        return cls(losses, seconds, teacher_seconds, heldout, rates)

    @property
    def teacher_share(self) -> float:
        """The share of the time that the teacher took."""
        return self.teacher_seconds / self.seconds


def train(
    model: PeftModel,
    arguments: TrainingArguments,
    callbacks: Sequence[TrainerCallback],
    *,
    rates: Sequence[float] | None = None,
    seen: Callable[[int], Mapping[str, float]] | None = None,
    teacher: Teacher | None = None,
    distill: DistillOptions | None = None,
    resume_from: Path | None = None,
    recompute: bool = False,
    finished: bool = False,
    in_pieces: bool = True,
    **data: Any,
) -> TrainingRun:
    """Train with the transformers Trainer, against a teacher if there is one. ``data``: as the Trainer takes it.

    ``rates``: the factor on the peak rate at each step (default: the curve that the arguments name). ``seen``: what is
    logged beside the loss.
    ``resume_from``: a checkpoint to go on from; if it has all the steps, or is ``finished`` before them, the model gets
    its adapter and nothing is trained. ``recompute``: activations are computed again in the backward pass.
    ``in_pieces``: as for ``LeanTrainer``.
    """
    if resume_from is not None:
        done = _state(resume_from)
        if finished or done.global_step >= arguments.max_steps:
            wear(model, Adapter.read(_adapter_in(resume_from, model)))
            return TrainingRun.told(done, 1.0, 0.0)
    values = {"factors": rates, "seen": seen, "in_pieces": in_pieces, "callbacks": list(callbacks), **data}
    with _settings_kept(model, arguments, recompute=recompute) as kept:
        if teacher is not None and distill is not None:
            trainer = DistillTrainer(model=model, args=arguments, teacher=teacher, distill=distill, **values)
        else:
            trainer = LeanTrainer(model=model, args=arguments, **values)
        trainer.remove_callback(PrinterCallback)
        if trainer.is_fsdp_enabled:
            kept.enter_context(whole_afterwards(model))
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        seconds = time.perf_counter() - start
    return TrainingRun.told(trainer.state, seconds, getattr(trainer, "teacher_seconds", 0.0))


@contextmanager
def _settings_kept(model: PeftModel, arguments: TrainingArguments, *, recompute: bool) -> Iterator[ExitStack]:
    """With gradients, on the device of the arguments; what the Trainer changes is afterwards as it was."""
    with ExitStack() as stack:
        stack.enter_context(_random_states_kept())
        stack.enter_context(training_on(arguments.device))
        stack.enter_context(torch.enable_grad())
        # The Trainer switches this off for good, and the configuration goes into the saved checkpoint.
        if hasattr(model.config, "use_cache"):
            stack.callback(setattr, model.config, "use_cache", model.config.use_cache)
        if recompute:
            stack.enter_context(_recomputing(model))
        yield stack


@contextmanager
def _recomputing(model: PeftModel) -> Iterator[None]:
    """The model computes its activations again inside the block, also one that takes its place there."""
    first = base_model(model)
    vendor.recompute_activations(first)
    try:
        yield
    finally:
        for each in {first, base_model(model)}:
            vendor.recompute_activations(each, on=False)


HELDOUT_LOSS = "eval_heldout_loss"
"""What the loss on held-out data is called in logs: dashboards put what begins with ``eval_`` on a page of its own."""
STATE = "trainer_state.json"
"""The Trainer's own file in its checkpoints."""


def _state(checkpoint: Path) -> TrainerState:
    return TrainerState.load_from_json(str(checkpoint / STATE))


def steps_done(checkpoint: Path) -> int:
    """The optimizer steps behind a checkpoint."""
    return int(_state(checkpoint).global_step)


def _logged(state: TrainerState, name: str) -> tuple[tuple[int, float], ...]:
    """(step, value) of what was logged under a name."""
    history: Sequence[dict[str, float]] = state.log_history
    return tuple((int(row["step"]), float(row[name])) for row in history if name in row)


def _adapter_in(checkpoint: Path, model: PeftModel) -> Path:
    """Where in a checkpoint peft saves the active adapter: all but the default one have folders of their own."""
    name = active_adapter(model)
    return checkpoint if name == "default" else checkpoint / name


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """The Trainer seeds Python's, numpy's and torch's global generators; the caller's own states come back."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
