"""Mixtures of experts in a form that traces with dynamic shapes: each expert computes its own tokens and no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from exporters.onnx import vendor

NAME = "lpc_unrolled"


def unrolled_experts(experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The mixture, expert by expert.

    ``hidden``: (tokens, width); ``chosen`` and ``weights``: (tokens, k), the experts of each token and their weights.
    A graph of the stock implementations either fixes which experts are used (eager), has no ONNX operator
    (grouped_mm), or copies an expert's weights for every token (batched_mm).
    """
    result = torch.zeros_like(hidden)
    first = experts.gate_up_proj if experts.has_gate else experts.up_proj
    for index in range(first.shape[0]):
        tokens, rank = torch.where(chosen == index)
        inner = _linear(experts, "gate_up_proj" if experts.has_gate else "up_proj", index, hidden[tokens])
        inner = vendor.gated(experts, inner) if experts.has_gate else experts.act_fn(inner)
        outer = _linear(experts, "down_proj", index, inner)
        if experts.has_post_expert_norm:
            outer = experts.post_expert_norm(outer)
        result = result.index_add(0, tokens, (outer * weights[tokens, rank, None]).to(result.dtype))
    return result


def _linear(experts: Any, name: str, index: int, hidden: torch.Tensor) -> torch.Tensor:
    """One expert's projection; stacked weights are (experts, out, in), or (experts, in, out) where transposed."""
    weight = getattr(experts, name)[index]
    bias = getattr(experts, f"{name}_bias")[index] if experts.has_bias else None
    return functional.linear(hidden, weight.T if experts.is_transposed else weight, bias)


@contextmanager
def traceable_experts(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the model's experts, if it has any, run unrolled; then its own setting is back."""
    if not any(vendor.is_expert_stack(module) for module in model.modules()):
        yield
        return
    own = model.get_experts_implementation()
    vendor.register_experts(NAME, unrolled_experts)
    model.set_experts_implementation(NAME)
    try:
        yield
    finally:
        model.set_experts_implementation(own)
