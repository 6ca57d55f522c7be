"""Mixtures of experts in a form that traces: a placeholder, in whose place a loop over the stacked weights is put.

A graph of the stock implementations either fixes which experts are used (eager), has no ONNX operator (grouped_mm), or
copies an expert's weights for every token (batched_mm). The loop goes once over each expert that some token chose, so
its nodes are as many for 128 experts as for 4, and so is the time to trace them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from passes.models import vendor

NAME = "lpc_looped"
DOMAIN, KIND, NUMBER = "lpc", "Mixture", "number"
"""The placeholder's name in a traced graph, and its attribute: the place of its experts in ``Mixtures.met``."""


class ExpertStep(nn.Module):
    """One expert on the tokens that chose it: ``(rows, gate, *slices) -> outputs``.

    ``rows`` and ``outputs``: (tokens, width); ``gate``: (tokens, 1), the expert's weight for each; ``slices``: the
    expert's own entry of each of ``stacked``.
    """

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, rows: torch.Tensor, gate: torch.Tensor, *slices: torch.Tensor) -> torch.Tensor:
        """See the class."""
        experts: Any = self.experts
        own = dict(zip(stacked(experts), slices, strict=True))
        first = next(iter(own))
        inner = self._linear(own, first, rows)
        inner = vendor.gated(experts, inner) if experts.has_gate else experts.act_fn(inner)
        outer = self._linear(own, "down_proj", inner)
        if experts.has_post_expert_norm:
            outer = experts.post_expert_norm(outer)
        return (outer * gate).to(rows.dtype)

    def _linear(self, own: dict[str, torch.Tensor], name: str, rows: torch.Tensor) -> torch.Tensor:
        weight, turned = own[name], bool(self.experts.is_transposed)
        return functional.linear(rows, weight.T if turned else weight, own.get(f"{name}_bias"))


def stacked(experts: Any) -> tuple[str, ...]:
    """The names of the stacked tensors of experts, (experts, out, in), transposed or not, and of their biases."""
    names = ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")
    return (*names, *(f"{name}_bias" for name in names)) if experts.has_bias else names


@dataclass
class Mixtures:
    """An implementation of experts that leaves a placeholder in the graph; ``met`` are the experts, by its number."""

    met: list[nn.Module] = field(default_factory=list)

    def __call__(
        self, experts: nn.Module, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """``hidden``: (tokens, width); ``chosen`` and ``weights``: (tokens, k), each token's experts and weights."""
        self.met.append(experts)
        inputs = (hidden, chosen, weights, *(getattr(experts, name) for name in stacked(experts)))
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{KIND}",
            inputs,
            {NUMBER: len(self.met) - 1},
            dtype=hidden.dtype,
            shape=hidden.shape,
            version=1,
        )


@contextmanager
def traceable_experts(model: PreTrainedModel) -> Iterator[Mixtures]:
    """Inside the block the model's experts, if it has any, are placeholders; then its own setting is back."""
    mixtures = Mixtures()
    if not any(vendor.is_expert_stack(module) for module in model.modules()):
        yield mixtures
        return
    own = model.get_experts_implementation()
    vendor.register_experts(NAME, mixtures)
    model.set_experts_implementation(NAME)
    try:
        yield mixtures
    finally:
        model.set_experts_implementation(own)
