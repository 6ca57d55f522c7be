"""Watching while tuning: held-out measures and the removed share at some steps, for logs and for whoever asks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from socket import gethostname
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

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
        with self._pruning.unseen():
            measures = self._run.heldout(self._pruning.trained, self._run.batch_size)
        self._run.watch(Watched(step=step, total=self._total, measures=measures, removed=removed, final=final))
        return {"removed_share": removed, **{f"eval_heldout_{name}": value for name, value in measures.items()}}


@contextmanager
def log_folder(names: Sequence[str]) -> Iterator[None]:
    """Where TensorBoard's log goes inside the block: ``TENSORBOARD_LOGGING_DIR``, or ``runs/TIME_HOST`` as for torch.

    The Trainer by itself would put it into the run folder, which goes when the run has ended.
    """
    if TENSORBOARD not in names or FOLDER in os.environ:
        yield
        return
    os.environ[FOLDER] = str(Path("runs") / f"{datetime.now():%b%d_%H-%M-%S}_{gethostname()}")
    try:
        yield
    finally:
        del os.environ[FOLDER]
