"""Watching while tuning: held-out measures and the removed share at some steps, for logs and for whoever asks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from passes.options import TuneOptions
from passes.pipeline import RunContext, Watched
from passes.tuning.callback import PruningCallback

LOOKS = 10
"""So many measures a run that is logged has, unless its options say otherwise."""
TENSORBOARD, FOLDER = "tensorboard", "TENSORBOARD_LOGGING_DIR"


class WatchCallback(TrainerCallback):  # type: ignore[misc]
    """Has the Trainer log at the steps that are to be looked at, and gives it what is seen there."""

    def __init__(self, pruning: PruningCallback, run: RunContext, every: int) -> None:
        self._pruning, self._run, self._every, self._total = pruning, run, every, 0

    @classmethod
    def of(cls, pruning: PruningCallback, run: RunContext, options: TuneOptions) -> WatchCallback | None:
        """As the options ask; None where nothing is to be watched, or nothing is held out."""
        every = options.heldout_every or (max(1, options.steps // LOOKS) if options.report_to else None)
        return cls(pruning, run, every) if every is not None and run.heldout is not None else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for an entry where one is due."""
        self._total = state.max_steps
        control.should_log = control.should_log or self._due(state.global_step)

    def _due(self, step: int) -> bool:
        return step % self._every == 0 or step == self._total

    def seen(self, step: int) -> Mapping[str, float]:
        """What is logged beside the loss of a step: the removed share, and the measures where they are due."""
        removed, final = self._pruning.removed, self._pruning.is_final(step)
        if not self._due(step) or self._run.heldout is None:
            return {"removed_share": removed}
        measures = self._run.heldout(self._pruning.trained, self._run.batch_size)
        self._run.watch(Watched(step=step, total=self._total, measures=measures, removed=removed, final=final))
        return {"removed_share": removed, **{f"eval_heldout_{name}": value for name, value in measures.items()}}


def logs(options: TuneOptions) -> tuple[list[str], list[TrainerCallback]]:
    """The logs that the Trainer is to write by itself, by name, and those that are callbacks of their own.

    TensorBoard's goes where torch's own writer puts it, ``runs`` in the current folder, or ``TENSORBOARD_LOGGING_DIR``:
    the Trainer would put it into the run folder, which goes when the run has ended.
    """
    names = [name for name in options.report_to if name != TENSORBOARD]
    return names or ["none"], list(_tensorboard()) if TENSORBOARD in options.report_to else []


def _tensorboard() -> Iterator[TrainerCallback]:
    module = import_module("torch.utils.tensorboard" if find_spec("tensorboard") else "tensorboardX")
    yield TensorBoardCallback(module.SummaryWriter(os.environ.get(FOLDER)))
