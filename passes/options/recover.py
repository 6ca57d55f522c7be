"""How the compact model trains."""

from __future__ import annotations

from dataclasses import dataclass

from passes.options.check import check
from passes.options.distill import DistillOptions
from passes.options.lora import LoraOptions
from passes.options.option import Group, option
from passes.options.tune import CURVES, MOST_RATE, MOST_SEED, MOST_STEPS


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
    batch_size: int | None = option(None, least=1, help="Sequences or rows a batch; by default the run's.")
    gradient_accumulation: int = option(1, least=1, help="Batches whose gradients make one step.")
    learning_rate: float | None = option(
        None, above=0, most=MOST_RATE, help="Peak learning rate; by default 0.64 / hidden size, at most 0.01."
    )
    lr_scheduler: str = option("cosine", choices=CURVES, help="The curve of the learning rate, by transformers' names.")
    max_grad_norm: float = option(1.0, least=0, help="Gradients are clipped to this norm; 0: not clipped.")
    bf16: bool = option(False, help="Run the forward pass of training under bf16 autocast.")
    seed: int | None = option(
        None, least=0, most=MOST_SEED, help="Seed of LoRA's start and of the data order; by default the run's."
    )
    lora: LoraOptions = option(LoraOptions(), help="The adapter that is trained, a fresh one.")
    distill: DistillOptions | None = option(None, help="Distil from the dense model, which is then loaded once more.")

    def __post_init__(self) -> None:
        check(self)
