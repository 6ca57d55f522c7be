"""Self-distillation: the model is tuned towards what its dense base computes (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from passes.models import Task, TokenHead, base_model, task_of
from passes.options import DistillOptions
from passes.tuning.divergence import Output, Outputs, comparable_hidden_states, hidden_error, pairs
from passes.tuning.lean import LeanTrainer, has_labels, labelled_states, without
from passes.tuning.positions import Mixture, summed_loss
from passes.tuning.teacher import Teacher

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class DistillTrainer(LeanTrainer):
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
        heads = None if return_outputs else self._heads_of_both(inputs)
        if heads is not None:
            return self._by_positions(model, inputs, heads, num_items_in_batch)
        return self._whole(model, inputs, return_outputs, num_items_in_batch)

    def _heads_of_both(self, inputs: Mapping[str, Any]) -> tuple[TokenHead, TokenHead] | None:
        """The student's head and the teacher's by themselves; None if one of them is not, or there are no labels."""
        student, teacher = self.head_of(base_model(self.model)), self.head_of(self._teacher.model)
        if student is None or teacher is None or student.words != teacher.words or not has_labels(student, inputs):
            return None
        return None if teacher.reads(self._teacher.swaps) else (student, teacher)

    def _by_positions(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        heads: tuple[TokenHead, TokenHead],
        items: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """The mixed loss without the logits of the whole batch."""
        options, labels = self._distill, inputs["labels"]
        more = {"output_hidden_states": True} if self._hidden else {}
        inputs = {**without(inputs, self._task.label_names), **more}
        teacher = self._timed(lambda: labelled_states(heads[1], self._teacher, inputs, labels))
        student = labelled_states(heads[0], model, inputs, labels)
        count = len(student.targets)
        mixture = Mixture(
            label=(1 - options.weight) * self.label_part(heads[0], count, items),
            teacher=options.weight * options.temperature**2,
            temperature=options.temperature,
        )
        sides = [self.side(head, each.hidden) for head, each in zip(heads, (student, teacher), strict=True)]
        mixed = summed_loss(sides[0], student.targets, mixture, sides[1]) * self.position_share(count, items)
        drawn = self._hidden_error({**inputs, "labels": labels}, teacher.outputs, student.outputs)
        return mixed if drawn is None else mixed + self._share(count, items) * drawn

    def _whole(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool,
        items: torch.Tensor | int | None,
    ) -> Any:
        """The mixed loss from whole outputs."""
        options = self._distill
        more = {"output_hidden_states": True} if self._hidden else {}
        asked = {**inputs, **more}
        # labels only where the inputs follow from them
        kept = asked if self._task is Task.SEQ2SEQ_LM else without(asked, self._task.label_names)
        teacher = self._timed(lambda: self._teacher(**kept))
        loss, student = super().compute_loss(model, asked, return_outputs=True, num_items_in_batch=items)
        compared = pairs(self._task, inputs, teacher, student)
        output = Output.of(base_model(self.model), inputs.get("labels"))
        divergence = torch.stack([pair.divergence(options.temperature, output) for pair in compared]).mean()
        drawn = options.weight * options.temperature**2 * divergence
        error = self._hidden_error(inputs, teacher, student)
        drawn = drawn if error is None else drawn + error
        mixed = (1 - options.weight) * loss + self._share(len(compared[0].student), items) * drawn
        return (mixed, student) if return_outputs else mixed

    def _share(self, positions: int, items: torch.Tensor | int | None) -> torch.Tensor | float:
        """What turns a mean over this micro-batch into its part of the whole batch's."""
        whole = self.model_accepts_loss_kwargs and items is not None
        return self.position_share(positions, items) * positions if whole else 1.0

    def _hidden_error(self, inputs: Mapping[str, Any], teacher: Outputs, student: Outputs) -> torch.Tensor | None:
        """h · the hidden error; None where hidden states are not compared."""
        if self._hidden and not comparable_hidden_states(teacher, student):
            logger.warning("teacher and student have no hidden states alike: only their outputs are distilled")
            self._hidden = False
        return self._distill.hidden_weight * hidden_error(inputs, teacher, student) if self._hidden else None

    def _timed(self, ask: Callable[[], Answer]) -> Answer:
        """What the teacher answers, in the precision of the training."""
        _wait()
        start = time.perf_counter()
        with self.accelerator.autocast():
            answer = ask()
        _wait()
        self.teacher_seconds += time.perf_counter() - start
        return answer


def _wait() -> None:
    """A GPU works on its own; seconds are those until it is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
