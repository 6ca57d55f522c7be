"""What holds for a whole run: where, in which precision, and what all of its passes share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

from passes.errors import OptionError
from passes.options.check import check
from passes.options.option import AUTO, Group, left_to, option

DEVICE = re.compile(r"auto|mps|(cpu|cuda)(:\d+)?")

DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Torch's names of the dtypes that weights are kept in, by their short ones; both are understood."""

DTYPES = (AUTO, *DTYPE_NAMES, *DTYPE_NAMES.values())

DtypeLike: TypeAlias = str | Any
"""A dtype by name, or torch's own object, which is not imported here."""

MOST_SEED = 2**32 - 1
"""The highest seed that numpy, and so the Trainer, takes."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What holds for a whole run. A pass's own options win where they say one of these; None there is the run's."""

    device: str = option(
        AUTO,
        help="Where to run: cpu, cuda, cuda:1, mps, or auto, the first of cuda, mps and cpu that is there.",
        group=Group.ADVANCED,
        common=True,
    )
    dtype: DtypeLike = option(
        AUTO,
        choices=DTYPES,
        help="Of the weights: fp32, bf16, fp16 (or torch's names), or auto, as they are stored.",
        group=Group.ADVANCED,
        common=True,
    )
    seed: int = option(
        0,
        least=0,
        most=MOST_SEED,
        help="Seed of every draw: LoRA's start, the data order, samples.",
        group=Group.TUNE,
        common=True,
    )
    batch_size: int = option(
        8, least=1, help="Sequences or rows a batch, wherever batches are run.", group=Group.TUNE, common=True
    )
    samples: int = option(
        128,
        least=1,
        help="Sequences or rows that are looked at where units are ranked or projections solved on data.",
        group=Group.RANK,
        common=True,
    )

    def __post_init__(self) -> None:
        if isinstance(self.dtype, str) or type(self.dtype).__module__ == "torch":
            object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        check(self)
        if DEVICE.fullmatch(self.device) is None:
            raise OptionError(f"device must be auto, cpu, cuda, cuda:N or mps, got {self.device!r}")


def left_to_run(name: str) -> Any:
    """A pass's own say in one of the run's options: None leaves it to the run."""
    return left_to(RunOptions, name, "By default the run's.")
