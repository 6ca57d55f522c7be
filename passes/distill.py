"""Self-distillation: the tuned model is drawn to what its own dense base computes (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax
from transformers import PreTrainedModel

from passes.errors import OptionError, UnsupportedModelError
from passes.models import base_model
from passes.rates import RatedTrainer
from passes.tasks import Task, task_of
from passes.teacher import Teacher

FAR_BELOW = -1e4
"""The logit of a position that is padding: its probability is 0 in fp32."""


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """How much the loss is the teacher's.

        loss = (1 − w) · task loss + w · T² · KL(teacher ‖ student) + h · hidden error

    ``weight`` w, ``temperature`` T, ``hidden_weight`` h. KL is the mean over the positions that bear a label, of the
    distributions softmax(logits / T). The hidden error is ‖H_teacher − H_student‖² / ‖H_teacher‖² over all positions
    that are no padding, the mean over the layers' outputs.
    """

    weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise OptionError(f"the weight of distillation must lie between 0 and 1, got {self.weight}")
        if not self.temperature > 0:
            raise OptionError(f"the temperature of distillation must be positive, got {self.temperature}")
        if not self.hidden_weight >= 0:
            raise OptionError(f"hidden_weight must be 0 or positive, got {self.hidden_weight}")


@dataclass(frozen=True)
class Pair:
    """Logits of teacher and student at the positions that count, [positions, classes] each, fp32."""

    teacher: torch.Tensor
    student: torch.Tensor

    def divergence(self, temperature: float) -> torch.Tensor:
        """KL(teacher ‖ student) of softmax(logits / T) in nats, the mean over the positions."""
        teacher, student = (log_softmax(logits / temperature, -1) for logits in (self.teacher, self.student))
        return kl_div(student, teacher, reduction="sum", log_target=True) / max(len(student), 1)


Outputs = Mapping[str, Any]


def check_distillable(model: PreTrainedModel) -> None:
    """Raises UnsupportedModelError for a model whose logits are no distribution over classes."""
    problem = getattr(model.config, "problem_type", None)
    if task_of(model) in (Task.SEQUENCE_CLASSIFICATION, Task.IMAGE_CLASSIFICATION) and (
        model.config.num_labels == 1 or problem in ("regression", "multi_label_classification")
    ):
        raise UnsupportedModelError(
            "distillation compares distributions over classes, and this model does regression or has several labels "
            "at once: leave distillation out"
        )


def pairs(task: Task, inputs: Mapping[str, Any], teacher: Outputs, student: Outputs) -> list[Pair]:
    """What is to be compared: logits where a label stands; both heads' in question answering."""
    if task is Task.QUESTION_ANSWERING:
        real = inputs.get("attention_mask")
        return [_pair(_padded(teacher[n], real), _padded(student[n], real)) for n in ("start_logits", "end_logits")]
    both, labels = (teacher["logits"], student["logits"]), inputs["labels"]
    if task in (Task.SEQUENCE_CLASSIFICATION, Task.IMAGE_CLASSIFICATION):
        return [_pair(*both)]
    if task is Task.CAUSAL_LM:
        both, labels = (both[0][:, :-1], both[1][:, :-1]), labels[:, 1:]
    return [_pair(*(logits[labels != -100] for logits in both))]


def _pair(teacher: torch.Tensor, student: torch.Tensor) -> Pair:
    return Pair(teacher.float(), student.float())


def _padded(logits: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    return logits if real is None else logits.masked_fill(real == 0, FAR_BELOW)


def hidden_error(inputs: Mapping[str, Any], teacher: Outputs, student: Outputs) -> torch.Tensor:
    """The mean over all layers' outputs of ‖H_teacher − H_student‖² / ‖H_teacher‖², padding left out."""
    source, target = inputs.get("attention_mask"), inputs.get("decoder_attention_mask")
    if target is None and "labels" in inputs:
        target = inputs["labels"] != -100
    masks = {"hidden_states": source, "encoder_hidden_states": source, "decoder_hidden_states": target}
    errors = []
    for name, mask in masks.items():
        for expected, actual in zip((teacher.get(name) or ())[1:], (student.get(name) or ())[1:], strict=True):
            if mask is not None and mask.shape == expected.shape[:2]:
                expected, actual = expected[mask.bool()], actual[mask.bool()]
            reference = expected.float()
            errors.append((reference - actual.float()).square().sum() / reference.square().sum())
    return torch.stack(errors).mean()


class DistillTrainer(RatedTrainer):
    """A Trainer whose loss is mixed with the distance to a teacher. It counts the seconds that the teacher takes."""

    def __init__(self, *, teacher: Teacher, distill: DistillOptions, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._teacher, self._distill = teacher, distill
        self._task = task_of(base_model(self.model))
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
        more = {"output_hidden_states": True} if options.hidden_weight else {}
        teacher = self._ask({**inputs, **more})
        loss, student = super().compute_loss(
            model, {**inputs, **more}, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        compared = pairs(self._task, inputs, teacher, student)
        divergence = torch.stack([pair.divergence(options.temperature) for pair in compared]).mean()
        drawn = options.weight * options.temperature**2 * divergence
        if options.hidden_weight:
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
