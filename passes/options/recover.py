"""How the compact model trains."""

from __future__ import annotations

from dataclasses import dataclass

from passes.options.check import check
from passes.options.distill import DistillOptions
from passes.options.lora import LoraOptions
from passes.options.option import Group, as_in, option
from passes.options.run import left_to_run
from passes.options.tune import MOST_STEPS, TuneOptions


@dataclass(frozen=True, kw_only=True)
class RecoverOptions:
    """How the compact model trains, after everything else (docs/recovery.md)."""

    steps: int = option(
        200,
        least=1,
        most=MOST_STEPS,
        help="Optimizer steps on the compact model, at most.",
        group=Group.TUNE,
        flag="--recover-steps",
    )
    every: int = option(25, least=1, help="Steps between two looks at the loss on data set aside.")
    patience: int = option(4, least=1, help="Looks without a new best after which training stops.")
    batch_size: int | None = left_to_run("batch_size")
    gradient_accumulation: int = as_in(TuneOptions, "gradient_accumulation")
    gradient_checkpointing: bool = as_in(TuneOptions, "gradient_checkpointing")
    learning_rate: float | None = as_in(TuneOptions, "learning_rate")
    optimizer: str = as_in(TuneOptions, "optimizer")
    lr_scheduler: str = as_in(TuneOptions, "lr_scheduler")
    max_grad_norm: float = as_in(TuneOptions, "max_grad_norm")
    bf16: bool = as_in(TuneOptions, "bf16")
    seed: int | None = left_to_run("seed")
    lora: LoraOptions = option(LoraOptions(), help="The adapter that is trained, a fresh one.")
    distill: DistillOptions | None = option(None, help="Distil from the dense model, which is then loaded once more.")

    def __post_init__(self) -> None:
        check(self)
