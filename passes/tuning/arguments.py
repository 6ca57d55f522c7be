"""The Trainer's arguments: what every training here says alike, on the device that the model is on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import TrainingArguments

from passes.errors import OptionError
from passes.models import base_model, smaller_batches
from passes.pipeline import RunContext

LOSSES_LOGGED = 20


class Training(Protocol):
    """The options that all training has."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""

    @property
    def gradient_accumulation(self) -> int:
        """Batches a step."""

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""

    @property
    def learning_rate(self) -> float | None:
        """The peak; None: by width."""

    @property
    def optimizer(self) -> str:
        """Which optimizer takes the steps."""

    @property
    def lr_scheduler(self) -> str:
        """The curve down from it."""

    @property
    def bf16(self) -> bool:
        """Whether the forward pass runs under autocast."""


@dataclass
class PlacedArguments(TrainingArguments):  # type: ignore[misc]
    """Arguments under which the Trainer leaves the model where it is, and uses no other device.

    By itself it moves the model to the first accelerator, and wraps it to use all of them. ``by``: the optimizer.
    """

    at: str = "cpu"
    by: str = "adamw"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        self._setup_devices  # noqa: B018 - it prepares accelerate as well
        return torch.device(self.at)

    @property
    def n_gpu(self) -> int:
        """One, if the model is on an accelerator."""
        return int(self.device.type != "cpu")

    @property
    def place_model_on_device(self) -> bool:
        """It is in its place."""
        return False


def training_arguments(
    options: Training, run: RunContext, folder: Path, model: PeftModel, **more: Any
) -> PlacedArguments:
    """The Trainer's arguments for options and the run narrowed by them; ``folder`` is for its files."""
    device = next(model.parameters()).device
    values = {
        "output_dir": str(folder),
        "max_steps": options.steps,
        "per_device_train_batch_size": run.batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation,
        "learning_rate": options.learning_rate or width_scaled_rate(base_model(model).config.hidden_size),
        "by": options.optimizer,
        "lr_scheduler_type": options.lr_scheduler,
        "bf16": options.bf16,
        "use_cpu": device.type == "cpu",
        "at": str(device),
        "seed": run.seed,
        "save_strategy": "no",
        "logging_steps": max(1, options.steps // LOSSES_LOGGED),
        "disable_tqdm": True,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": device.type == "cuda",
    }
    return PlacedArguments(**{**values, **more})


def with_less_memory(options: Training, run: RunContext) -> str:
    """What to change where training runs out of memory; the first makes the same steps."""
    size, batches = run.narrowed(options).batch_size, options.gradient_accumulation
    ways = []
    if size > 1:
        ways.append(f"set batch_size={size // 2} and gradient_accumulation={batches * 2}, which makes the same steps")
    if not options.gradient_checkpointing:
        ways.append("set gradient_checkpointing=True, which computes activations twice and keeps few of them")
    return "; or ".join(ways) or smaller_batches(size)


def check_recomputing(options: Training, model: PeftModel) -> None:
    """Raise OptionError if activations are to be computed again and the class of the model cannot."""
    base = base_model(model)
    if options.gradient_checkpointing and not base.supports_gradient_checkpointing:
        raise OptionError(f"{type(base).__name__} has no gradient checkpointing: leave gradient_checkpointing out")


@contextmanager
def training_on(device: torch.device) -> Iterator[None]:
    """A CUDA device is the current one inside the block, as accelerate asks for; afterwards what was so before."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


def width_scaled_rate(hidden_size: int) -> float:
    """The default peak learning rate of the adapters: 0.01 x (64 / hidden size)^(3/4), at most 0.01.

    Adam's best rate falls with the width: as its inverse for a hidden matrix in theory (Yang et al., arXiv 2203.03466,
    table 3). At hidden sizes 64, 256 and 576 the best rates measured fall more slowly (docs/quality.md): this is the
    best at 64 and a little below the best at the other two; 4.4e-4 at 4096.
    """
    return 0.01 * min(1.0, math.pow(64 / hidden_size, 0.75))
