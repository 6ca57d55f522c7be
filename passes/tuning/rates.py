"""The learning rate of a run through several stages: down one curve in each, so that every snapshot is a settled model.

One curve over the whole run would take the early snapshots at a high rate and leave none for the last stages to tune
with. On stories260K (300 steps through 0.1, 0.2, 0.3 and 0.5) it gives the held-out perplexities 7.29, 7.85, 8.12 and
14.44; a curve a stage from the same peak 6.27, 7.75, 8.61 and 11.91; with the later peaks at ``RESTART`` 6.27, 7.47,
8.39 and 11.71, at a half 12.07 and at a quarter 13.87 at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, get_scheduler

from passes.errors import OptionError
from passes.ranks import sharded

RESTART = 0.7
"""The peak of every stage but the first, as a fraction of the first's."""


def stage_rates(name: str, lengths: Sequence[int]) -> list[float]:
    """The factor on the peak rate at each step, for stages of these lengths, each down the curve of that name.

    Raises OptionError for the curve that follows the loss, which no stage can plan.
    """
    if name == "reduce_lr_on_plateau":
        raise OptionError(f"lr_scheduler {name} depends on the loss; with snapshots choose a curve, such as cosine")
    factors = []
    for number, length in enumerate(lengths):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RESTART if number else 1.0)
        curve = get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=length)
        for _ in range(length):
            factors.append(float(curve.get_last_lr()[0]))
            optimizer.step()
            curve.step()
    return factors


def muon(trained: Sequence[torch.Tensor], rate: float) -> torch.optim.Optimizer:
    """Muon (Jordan et al., 2024) without weight decay, its steps scaled to AdamW's (Liu et al., arXiv 2502.16982).

    Raises OptionError for weights that are no matrices, and for sharded ones.
    """
    odd = next((each for each in trained if each.ndim != 2), None)
    if odd is not None or sharded():
        what = "sharded weights (FSDP)" if odd is None else f"a weight of the shape {tuple(odd.shape)}"
        raise OptionError(f"optimizer (--optimizer) muon trains whole matrices, not {what}: choose adamw")
    return torch.optim.Muon(trained, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")


class RatedTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose learning rate is the peak times a factor given for each step, or the curve of its arguments.

    ``seen``: what is logged beside the loss, asked for at each entry.
    """

    def __init__(
        self,
        factors: Sequence[float] | None = None,
        seen: Callable[[int], Mapping[str, float]] | None = None,
        **arguments: Any,
    ) -> None:
        self._factors, self._seen = factors, seen
        super().__init__(**arguments)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name. Raises OptionError if it cannot train these weights."""
        if getattr(self.args, "by", "adamw") == "muon" and vars(self).get("optimizer") is None:
            trained = [each for each in self.model.parameters() if each.requires_grad]
            self.optimizer = muon(trained, self.args.learning_rate)
        made: torch.optim.Optimizer = super().create_optimizer(model)
        return made

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """The schedule of the given factors."""
        factors = self._factors
        if factors is None:
            made: LambdaLR = super().create_scheduler(num_training_steps, optimizer)
            return made
        last = len(factors) - 1
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: factors[min(step, last)])
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log an entry, with what is seen at its step; the summary at the end has no loss, and stays as it is."""
        more = self._seen(self.state.global_step) if self._seen is not None and "loss" in logs else {}
        super().log({**logs, **more}, start_time)
