"""The loss of a language model over positions, a chunk at a time: cross-entropy of labels, and divergence of a teacher.

A whole batch has tokens · words logits, and a loss makes half a dozen fp32 copies of them. Here the gradient of a
chunk's hidden states is taken as soon as its logits are there, and the logits are let go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Logits = Callable[[torch.Tensor], torch.Tensor]
"""From hidden states [positions, width] to logits [positions, words]."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What the loss of a position is made of: ``label`` · cross-entropy + ``teacher`` · KL(teacher ‖ student).

    KL is of the distributions softmax(logits / ``temperature``).
    """

    label: float = 1.0
    teacher: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Side:
    """Hidden states [positions, width] of a model, and what makes logits of them, so many positions at a time."""

    hidden: torch.Tensor
    logits: Logits
    chunk: int


def summed_loss(student: Side, targets: torch.Tensor, mixture: Mixture, teacher: Side | None = None) -> torch.Tensor:
    """The sum of the loss over the positions, fp32. ``targets`` [positions]; the gradient goes to the hidden states."""
    total: torch.Tensor = _Chunks.apply(student.hidden, student, targets, mixture, teacher)  # type: ignore[no-untyped-call]
    return total


class _Chunks(torch.autograd.Function):
    """The sum over all chunks; the gradient of the hidden states is there before the backward pass begins."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        student: Side,
        targets: torch.Tensor,
        mixture: Mixture,
        teacher: Side | None,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), student.chunk):
            rows = slice(start, start + student.chunk)
            expected = teacher.logits(teacher.hidden[rows]) if teacher is not None else None
            with torch.set_grad_enabled(gradient is not None):
                part = hidden[rows].detach().requires_grad_(gradient is not None)
                loss = _Mixed.apply(student.logits(part), targets[rows], expected, mixture)  # type: ignore[no-untyped-call]
            if gradient is not None:
                (gradient[rows],) = torch.autograd.grad(loss, part)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient.float() * gradients[0]).to(gradient.dtype), None, None, None, None


class _Mixed(torch.autograd.Function):
    """The summed loss of logits [positions, words], with d/ds = label·(softmax(s) − y) + teacher·(q_s − q_t) / T."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, expected: torch.Tensor | None, mixture: Mixture
    ) -> torch.Tensor:
        student = logits.float().log_softmax(1)
        total = -mixture.label * student.gather(1, targets[:, None]).sum()
        found = student.exp()
        found.scatter_add_(1, targets[:, None], found.new_full((len(found), 1), -1.0))
        found.mul_(mixture.label)
        if expected is not None and mixture.teacher:
            heat = mixture.temperature
            if heat != 1:
                student = (logits.float() / heat).log_softmax(1)
            wanted = (expected.float() / heat).log_softmax(1)
            likely = wanted.exp()
            total = total + mixture.teacher * wanted.sub_(student).mul_(likely).sum()
            found.add_(student.exp_().sub_(likely), alpha=mixture.teacher / heat)
        ctx.save_for_backward(found.to(logits.dtype) if ctx.needs_input_grad[0] else None)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (found,) = ctx.saved_tensors
        return found * gradients[0].to(found.dtype), None, None, None
