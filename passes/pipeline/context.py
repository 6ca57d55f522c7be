"""The run context: what all passes of one run share, handed to each by the framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from passes.errors import OptionError
from passes.models import Collate
from passes.pipeline.plain import plain
from passes.ranks import launched, local_rank

Progress = Callable[[str, int, int], None]
"""Told the stage's name, the steps done and the steps in total."""

AUTO = "auto"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtypes by their short names; torch's own names are understood as well."""

SHARED = ("seed", "batch_size", "samples", "checkpoints")
"""Fields that a pass's own options may have too; where these leave them open (None), the run's are taken."""


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What every pass of a run shares.

    ``device`` is where the model is put when it is loaded, and stays: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or
    ``auto``, the first of cuda, mps and cpu that is there. ``dtype`` is that of its weights: ``fp32``, ``bf16``,
    ``fp16``, a torch dtype, or ``auto``, as they are stored. ``seed`` fixes every draw, ``batch_size`` is how many
    sequences or rows a batch has, wherever batches are run, and ``samples`` how many are looked at where units are
    ranked or projections solved on data. ``collate`` makes a batch of rows (None: stack). ``checkpoints`` is the folder
    for what can be gone on from: in a pipeline each pass has one of its own inside. A pass's own options win where they
    say one of these.
    """

    progress: Progress = field(default=silent, metadata={"record": False})
    device: str = AUTO
    dtype: str | torch.dtype = AUTO
    seed: int = 0
    batch_size: int = 8
    samples: int = 128
    collate: Collate | None = field(default=None, metadata={"record": False})
    checkpoints: Path | None = field(default=None, metadata={"record": False})

    def __post_init__(self) -> None:
        for name in ("batch_size", "samples"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.device != AUTO:
            device_named(self.device)
        dtype_named(self.dtype)

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
    """The device of that name. Raises OptionError for one that is unknown or not there.

    Of several processes each takes the CUDA device of its own number on its machine.
    """
    if name == AUTO:
        kinds = (("cuda", torch.cuda), ("mps", torch.mps)) if launched()[1] == 1 else (("cuda", torch.cuda),)
        found = [kind for kind, module in kinds if module.is_available()]
        return device_named(found[0] if found else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.mps.is_available())}.get(device.type, 0)
    if launched()[1] > 1 and device.type != "cpu":
        own = torch.device("cuda", local_rank())
        if device not in (own, torch.device("cuda")):
            raise OptionError(f"device {name!r} is one for {launched()[1]} processes: say cuda, cpu or auto")
        device = own
    if (device.index or 0) >= count:
        raise OptionError(f"device {name!r} is not there: torch sees {count} of the kind {device.type}")
    return device


def dtype_named(name: str | torch.dtype) -> torch.dtype | None:
    """The dtype of that name; None for ``auto``. Raises OptionError for one that no weights are kept in."""
    wanted = name if isinstance(name, torch.dtype) else DTYPES.get(name, getattr(torch, name, None))
    if name == AUTO or wanted in DTYPES.values():
        return None if name == AUTO else wanted
    raise OptionError(f"dtype must be auto, {', '.join(DTYPES)} (float32, bfloat16, float16), got {str(name)!r}")


DEFAULT_RUN = RunContext()
"""What a pass that is called by itself gets."""
