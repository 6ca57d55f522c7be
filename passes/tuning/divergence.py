"""How far a student's outputs are from a teacher's: logits where labels stand, and hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import PreTrainedModel

from passes.models import SENTENCE_EMBEDDING, Task, embedding_loss, task_of

FAR_BELOW = -1e4
"""The logit of a position that is padding: its probability is 0 in fp32."""


class Output(StrEnum):
    """What logits are."""

    CLASSES = "classes"
    """A distribution over classes: softmax."""
    LABELS = "labels"
    """Several labels that hold or do not, each by itself: sigmoid."""
    NUMBERS = "numbers"
    """The values themselves: regression."""

    @classmethod
    def of(cls, model: PreTrainedModel, labels: torch.Tensor | None) -> Output:
        """As transformers' loss for classification tells them apart."""
        if task_of(model) not in (Task.SEQUENCE_CLASSIFICATION, Task.IMAGE_CLASSIFICATION):
            return cls.CLASSES
        problem = getattr(model.config, "problem_type", None)
        if problem == "regression" or model.config.num_labels == 1:
            return cls.NUMBERS
        several = problem == "multi_label_classification" or (labels is not None and labels.is_floating_point())
        return cls.LABELS if several else cls.CLASSES


@dataclass(frozen=True)
class Pair:
    """Logits of teacher and student at the positions that count, [positions, classes] each, fp32."""

    teacher: torch.Tensor
    student: torch.Tensor

    def divergence(self, temperature: float, output: Output = Output.CLASSES) -> torch.Tensor:
        """KL(teacher ‖ student) of softmax(logits / T) in nats, the mean over the positions.

        Of several labels, the sum of the labels' own KL of sigmoid(logits / T); of numbers, the mean over them of
        ((teacher − student) / T)².
        """
        teacher, student = self.teacher / temperature, self.student / temperature
        if output is Output.NUMBERS:
            return (teacher - student).square().mean()
        if output is Output.LABELS:  # each label is a distribution over two classes, with the logits 0 and x
            teacher, student = (torch.stack((logits, torch.zeros_like(logits)), -1) for logits in (teacher, student))
        teacher, student = log_softmax(teacher, -1), log_softmax(student, -1)
        return kl_div(student, teacher, reduction="sum", log_target=True) / max(len(student), 1)


@dataclass(frozen=True)
class Vectors(Pair):
    """Embeddings of teacher and student, [rows, width] each; a temperature does not apply to them."""

    def divergence(self, temperature: float, output: Output = Output.CLASSES) -> torch.Tensor:
        """Their distance (``passes.models.embedding_loss``), over T², which the loss multiplies by."""
        return embedding_loss(self.student, self.teacher) / temperature**2


Outputs = Mapping[str, Any]


def pairs(task: Task, inputs: Mapping[str, Any], teacher: Outputs, student: Outputs) -> list[Pair]:
    """What is to be compared: logits where a label stands; both heads' in question answering.

    The labels of an embedding model are the teacher's vectors.
    """
    if task is Task.QUESTION_ANSWERING:
        real = inputs.get("attention_mask")
        return [_pair(_padded(teacher[n], real), _padded(student[n], real)) for n in ("start_logits", "end_logits")]
    if task is Task.FEATURE_EXTRACTION:
        return [Vectors(inputs["labels"], student[SENTENCE_EMBEDDING])]
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


HIDDEN_STATES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")


def comparable_hidden_states(teacher: Outputs, student: Outputs) -> bool:
    """Whether there are any, and both have as many of the same shapes."""
    shapes = [[[h.shape for h in each.get(name) or ()] for name in HIDDEN_STATES] for each in (teacher, student)]
    return any(shapes[0]) and shapes[0] == shapes[1]


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
