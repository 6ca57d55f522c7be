"""Labels: what a model's loss wants of them, and whether a row's are that."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from transformers import PreTrainedConfig

from passes.errors import DataError
from passes.models import Task

__all__ = ["IGNORED", "LABEL_ALIASES", "LabelFormat"]

LABEL_ALIASES = ("label", "label_ids")
"""What other libraries call ``labels``."""

IGNORED = -100
"""The label of a place that has none."""


class _Want(StrEnum):
    """What one row's labels are."""

    CLASS = "class"
    CLASSES = "a class or one of all classes each"
    EACH = "one of all classes each"
    NUMBER = "number"
    VECTOR = "vector"
    ALONG = "a class a token"
    TOKENS = "tokens"
    ENDS = "ends"


@dataclass(frozen=True, kw_only=True)
class LabelFormat:
    """What the labels of one row look like.

    ``classes`` is the number of classes or tokens to choose from, of a regression the number of its outputs; None if
    nothing says it. In question answering the two ends are the labels.
    """

    want: _Want
    classes: int | None

    @classmethod
    def of(cls, task: Task, config: PreTrainedConfig) -> LabelFormat:
        """What ``ForSequenceClassificationLoss`` and its like in transformers' ``loss_utils`` take."""
        if task in (Task.CAUSAL_LM, Task.MASKED_LM, Task.SEQ2SEQ_LM):
            along = _Want.TOKENS if task is Task.SEQ2SEQ_LM else _Want.ALONG
            return cls(want=along, classes=getattr(config.get_text_config(), "vocab_size", None))
        if task is Task.FEATURE_EXTRACTION:
            return cls(want=_Want.VECTOR, classes=None)
        if task is Task.QUESTION_ANSWERING:
            return cls(want=_Want.ENDS, classes=None)
        if task is Task.TOKEN_CLASSIFICATION:
            return cls(want=_Want.ALONG, classes=int(config.num_labels))
        wants = {
            "regression": _Want.NUMBER,
            "single_label_classification": _Want.CLASS,
            "multi_label_classification": _Want.EACH,
        }
        by_count = _Want.NUMBER if config.num_labels == 1 else _Want.CLASSES
        return cls(want=wants.get(config.problem_type or "", by_count), classes=int(config.num_labels))

    def read(self, where: str, name: str, labels: torch.Tensor, tokens: int | None) -> torch.Tensor:
        """The labels as the loss takes them; ``tokens`` is the length of the row's ``input_ids``. Raises DataError.

        Where every class has its own label, whole numbers become floats, and so do those of a regression.
        """
        if self.want is _Want.NUMBER:
            return self._numbers(where, labels)
        if self.want is _Want.VECTOR:
            return _vector(where, labels)
        if self.want is _Want.EACH or (self.want is _Want.CLASSES and self._one_each(labels)):
            return self._each(where, labels)
        if labels.is_floating_point():
            raise DataError(f"{where}: {name} holds {_first(labels)}: labels that name a class or place are integers")
        if self.want in (_Want.CLASS, _Want.CLASSES, _Want.ENDS) and labels.numel() != 1:
            raise DataError(f"{where}: {name} has {labels.numel()} values, and the model takes one a row")
        if self.want is _Want.ALONG and (labels.ndim != 1 or (tokens is not None and len(labels) != tokens)):
            raise DataError(f"{where} has {labels.numel()} {name} and {tokens} input_ids: each token needs its own")
        if self.want is not _Want.ENDS:
            self._check_range(where, labels)
        return labels

    def _one_each(self, labels: torch.Tensor) -> bool:
        return labels.ndim == 1 and len(labels) == self.classes

    def _each(self, where: str, labels: torch.Tensor) -> torch.Tensor:
        if not self._one_each(labels):
            raise DataError(
                f"{where} has labels {list(labels.shape)}, and the model needs one of 0 and 1 a class: {self.classes}"
            )
        found = labels.float()
        if bool(((found < 0) | (found > 1)).any()):
            odd = found[(found < 0) | (found > 1)]
            raise DataError(f"{where} has label {_first(odd)}, and where every class has its own, labels are 0 to 1")
        return found

    def _numbers(self, where: str, labels: torch.Tensor) -> torch.Tensor:
        if labels.numel() != self.classes:
            raise DataError(f"{where} has {labels.numel()} labels, and the model has {self.classes} outputs")
        return labels.float()

    def _check_range(self, where: str, labels: torch.Tensor) -> None:
        real = labels[labels != IGNORED]
        if self.classes is None or not real.numel():
            return
        low, high = int(real.min()), int(real.max())
        if low < 0 or high >= self.classes:
            odd = high if low >= 0 else low
            raise DataError(f"{where} has label {odd}, and the model has labels 0 to {self.classes - 1}")


def _vector(where: str, labels: torch.Tensor) -> torch.Tensor:
    if labels.ndim != 1 or not labels.is_floating_point() or not bool(torch.isfinite(labels).all()):
        raise DataError(f"{where}: the labels of an embedding model are one vector of finite numbers a row")
    return labels.float()


def _first(values: torch.Tensor) -> float | int:
    found: float | int = values.flatten()[0].item() if values.numel() else 0
    return found
