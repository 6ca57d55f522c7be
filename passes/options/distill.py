"""How much the loss is the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

from passes.options.check import check
from passes.options.option import option


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """How much the loss is the teacher's.

        loss = (1 − w) · task loss + w · T² · KL(teacher ‖ student) + h · hidden error

    KL is the mean over the positions that bear a label, of the distributions softmax(logits / T). The hidden error is
    ‖H_teacher − H_student‖² / ‖H_teacher‖² over all positions that are no padding, the mean over the layers' outputs;
    where teacher and student have none alike, it is left out with a warning. Several labels at once and regression have
    distances of their own (``passes.tuning.divergence``).
    """

    weight: float = option(0.5, noun="the weight of distillation", least=0, most=1, help="w of the loss.")
    temperature: float = option(1.0, noun="the temperature of distillation", above=0, help="T of the loss.")
    hidden_weight: float = option(5.0, least=0, help="h of the loss.")

    def __post_init__(self) -> None:
        check(self)
