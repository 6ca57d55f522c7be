"""Self-distillation: the model is tuned towards what its dense base computes (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from passes.models import Task, base_model, task_of
from passes.options import DistillOptions
from passes.tuning.divergence import Output, Outputs, comparable_hidden_states, hidden_error, pairs
from passes.tuning.rates import RatedTrainer
from passes.tuning.teacher import Teacher

logger = logging.getLogger(__name__)


class DistillTrainer(RatedTrainer):
    """A Trainer whose loss is mixed with the distance to a teacher. It counts the seconds that the teacher takes."""

    def __init__(self, *, teacher: Teacher, distill: DistillOptions, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._teacher, self._distill = teacher, distill
        self._task = task_of(base_model(self.model))
        self._hidden = bool(distill.hidden_weight)
        self.teacher_seconds = 0.0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The mixed loss; the teacher answers first, so that nothing the student keeps for its gradients changes."""
        options = self._distill
        more = {"output_hidden_states": True} if self._hidden else {}
        teacher = self._ask({**inputs, **more})
        loss, student = super().compute_loss(
            model, {**inputs, **more}, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if self._hidden and not comparable_hidden_states(teacher, student):
            logger.warning("teacher and student have no hidden states alike: only their outputs are distilled")
            self._hidden = False
        compared = pairs(self._task, inputs, teacher, student)
        output = Output.of(base_model(self.model), inputs.get("labels"))
        divergence = torch.stack([pair.divergence(options.temperature, output) for pair in compared]).mean()
        drawn = options.weight * options.temperature**2 * divergence
        if self._hidden:
            drawn = drawn + options.hidden_weight * hidden_error(inputs, teacher, student)
        mixed = (1 - options.weight) * loss + self._share(len(compared[0].student), num_items_in_batch) * drawn
        return (mixed, student) if return_outputs else mixed

    def _ask(self, inputs: Mapping[str, Any]) -> Outputs:
        """The teacher's answer; labels only where the inputs follow from them."""
        kept = inputs if self._task is Task.SEQ2SEQ_LM else _without(inputs, self._task.label_names)
        _wait()
        start = time.perf_counter()
        answer = self._teacher(kept)
        _wait()
        self.teacher_seconds += time.perf_counter() - start
        return answer

    def _share(self, positions: int, items: torch.Tensor | int | None) -> torch.Tensor | float:
        """What turns a mean over this micro-batch into its part of the whole batch's, as the task loss already is.

        Where the model does not take the number of labels of the whole batch, the Trainer divides afterwards.
        """
        if not self.model_accepts_loss_kwargs or items is None:
            return 1.0
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return positions * ranks / items


def _without(inputs: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in names}


def _wait() -> None:
    """A GPU works on its own; seconds are those until it is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
