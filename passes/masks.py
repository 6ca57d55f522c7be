"""Masks: which units a forward pass lets through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from passes.graph import PruningGraph
from passes.models import base_model

Masks = Mapping[str, torch.Tensor]
"""A boolean tensor [units] a dimension name; True lets the unit through."""


def full_masks(graph: PruningGraph) -> dict[str, torch.Tensor]:
    """Masks that let everything through."""
    return {dimension.name: torch.ones(dimension.size, dtype=torch.bool) for dimension in graph.dimensions}


class MaskedModel:
    """Hooks that multiply the outputs of the producing projections: z = (xW0 + s·xBA) ⊙ M (LoRAPrune).

    A masked unit's queries, keys, values, gates and ups are zero, biases included, so its columns of the consuming
    projection see zeros: exactly what removing the unit computes. There is no straight-through estimator.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, graph: PruningGraph) -> None:
        self._graph = graph
        self._modules: dict[str, nn.Module] = {}
        self._factors: dict[str, torch.Tensor] = {}
        self._handles = []
        base = base_model(model)
        for dimension in graph.dimensions:
            for part in dimension.outputs:
                module = base.get_submodule(part.module)
                self._modules[part.module] = module
                self._handles.append(module.register_forward_hook(self._hook(part.module)))
        self.set(full_masks(graph))

    def set(self, masks: Masks) -> None:
        """Use these masks from the next forward pass on."""
        for dimension in self._graph.dimensions:
            for part in dimension.outputs:
                weight = next(self._modules[part.module].parameters())
                expanded = masks[dimension.name].repeat_interleave(part.block)
                self._factors[part.module] = expanded.to(device=weight.device)

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
        def multiply(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output * self._factors[name].to(output.dtype)

        return multiply


@contextmanager
def masked(model: PreTrainedModel | PeftModel, graph: PruningGraph, masks: Masks) -> Iterator[MaskedModel]:
    """The model under the masks, inside the block."""
    hooks = MaskedModel(model, graph)
    try:
        hooks.set(masks)
        yield hooks
    finally:
        hooks.remove()
