"""Checkpoints of a training: taken every so many steps, sealed once they are whole, and found again."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from passes.errors import MissingFileError
from passes.options import TuneOptions
from passes.pipeline import WHOLE, digests
from passes.ranks import told_by_first
from passes.tuning.arguments import LOSSES_LOGGED

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""By default checkpoints are at least so far apart."""

KEPT = 2
"""So many of the newest checkpoints stay."""


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Has the Trainer write a checkpoint ``every`` so many steps and at the end, and seals it.

    By default that is where the loss is logged, a twentieth of the steps apart, but not within ``SECONDS`` of the last.
    ``kept``: how many stay; None: all. It comes last among the callbacks, so that what they save is sealed as well.
    """

    def __init__(self, every: int | None, kept: int | None = KEPT) -> None:
        self._every, self._kept = every, kept
        self._last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Ask for a checkpoint where one is due."""
        step = state.global_step
        if self._every is not None:
            control.should_save = step % self._every == 0 or step >= state.max_steps
        elif step % max(1, state.max_steps // LOSSES_LOGGED) == 0:
            control.should_save = told_by_first(time.monotonic() - self._last >= SECONDS)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Seal the checkpoint that was just written, when every rank's part is there, and remove the oldest."""
        told_by_first(None)
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        seal(folder / f"checkpoint-{state.global_step}")
        self._last = time.monotonic()
        for path in _found(folder)[: -self._kept] if self._kept else []:
            shutil.rmtree(path, ignore_errors=True)


def seal(checkpoint: Path) -> None:
    """Say that a checkpoint is whole: which files it has, with their sha256."""
    partial = checkpoint / f"{WHOLE}.partial"
    partial.write_text(json.dumps(digests(checkpoint, without=WHOLE)), encoding="utf-8")
    partial.replace(checkpoint / WHOLE)


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint in a folder that is as it was sealed; None if there is none."""
    for checkpoint in reversed(_found(folder)):
        try:
            sealed = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, RecursionError):
            sealed = None
        if sealed is not None and sealed == digests(checkpoint, without=WHOLE):
            return checkpoint
        logger.warning("%s is not whole and is passed over", checkpoint)
    return None


def latest_checkpoint(options: TuneOptions, folder: Path | None) -> Path | None:
    """The checkpoint to go on from: the last whole one in the run's folder, or, if ``resume`` is set, in one's own.

    Raises MissingFileError if there is none to resume from.
    """
    if folder is None or (options.checkpoints is not None and not options.resume):
        return None
    found = last_whole(folder)
    if found is None and options.resume:
        raise MissingFileError(f"there is no whole checkpoint-* to resume from in {folder}")
    return found


def _found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by their steps."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
