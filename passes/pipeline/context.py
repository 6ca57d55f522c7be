"""The run context: what all passes of one run share, handed to each by the framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from passes.errors import OptionError
from passes.models import Collate
from passes.options import AUTO, DTYPE_NAMES, RunOptions
from passes.pipeline.plain import plain
from passes.pipeline.watch import HeldOutMeasures, Watch, unwatched
from passes.ranks import launched, local_rank

Progress = Callable[[str, int, int], None]
"""Told the stage's name, the steps done and the steps in total."""

SHARED = ("seed", "batch_size", "samples", "checkpoints")
"""What a pass's own options may say too; where these leave it open (None), the run's is taken."""


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


@dataclass(frozen=True, kw_only=True)
class RunContext(RunOptions):
    """What every pass of a run shares: the run's options, and what is no option.

    ``device`` is where the model is put when it is loaded, and stays; ``dtype`` is that of its weights. ``collate``
    makes a batch of rows (None: stack). ``checkpoints`` is the folder for what can be gone on from: in a pipeline each
    pass has one of its own inside. A pass's own options win where they say one of these. ``heldout`` measures a model
    while it is tuned (None: there is nothing to measure it on), and ``watch`` is told.
    """

    progress: Progress = field(default=silent, metadata={"record": False})
    collate: Collate | None = field(default=None, metadata={"record": False})
    checkpoints: Path | None = field(default=None, metadata={"record": False})
    heldout: HeldOutMeasures | None = field(default=None, metadata={"record": False})
    watch: Watch = field(default=unwatched, metadata={"record": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device != AUTO:
            device_named(self.device)

    @classmethod
    def of(cls, options: RunOptions, progress: Progress = silent) -> RunContext:
        """The context of a run on the device that its options name. Raises OptionError for one that is not there."""
        return cls(**{**vars(options), "device": str(device_named(options.device))}, progress=progress)

    def inside(self, name: str) -> RunContext:
        """The context of a part of the run, whose folder for what can be gone on from lies inside the run's."""
        return replace(self, checkpoints=self.checkpoints / name) if self.checkpoints is not None else self

    def narrowed(self, options: object) -> RunContext:
        """The context of one pass: what its own options say of the shared fields, else what the run says."""
        said = {name: getattr(options, name, None) for name in SHARED}
        return replace(self, **{name: value for name, value in said.items() if value is not None})

    def told(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options as plain values, as a record has them: the run's where they leave a shared field open."""
        shared = {name: getattr(self, name) for name in SHARED if options.get(name, 0) is None}
        return {**options, **plain(shared)}


def device_named(name: str) -> torch.device:
    """The device of that name. Raises OptionError for one that is not there.

    Of several processes each takes the CUDA device of its own number on its machine.
    """
    several = launched()[1] > 1
    if name == AUTO:
        kinds = [("cuda", torch.cuda)] if several else [("cuda", torch.cuda), ("mps", torch.mps)]
        found = [kind for kind, module in kinds if module.is_available()]
        return device_named(found[0] if found else "cpu")
    device = torch.device(name)
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.mps.is_available())}[device.type]
    if several and device.type != "cpu":
        own = torch.device("cuda", local_rank())
        if device not in (own, torch.device("cuda")):
            raise OptionError(f"device {name!r} is one for {launched()[1]} processes: say cuda, cpu or auto")
        device = own
    if (device.index or 0) >= count:
        raise OptionError(f"device {name!r} is not there: torch sees {count} of the kind {device.type}")
    return device


def dtype_named(name: str) -> torch.dtype | None:
    """The dtype of one of ``RunOptions``' names; None for ``auto``."""
    found: torch.dtype | None = None if name == AUTO else getattr(torch, DTYPE_NAMES.get(name, name))
    return found


DEFAULT_RUN = RunContext()
"""What a pass that is called by itself gets."""
