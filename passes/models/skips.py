"""Skips: hooks that take whole layers and blocks out of a forward pass while they are masked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from passes.graph import Kind, PruningGraph, Role, layer_path
from passes.models.base import module_at


def exits(graph: PruningGraph, name: str, unit: int) -> tuple[str, ...]:
    """The modules whose outputs are all that a block adds: the last projections of the dimensions inside it."""
    inner = (graph.by_name[each] for each, owner in graph.inside.items() if owner == (name, unit))
    return tuple(dict.fromkeys(part.module for each in inner for part in each.of_role(Role.CONSUME)))


class Skips:
    """A masked layer returns its input, a masked attention or MLP block adds zero (its output bias included).

    The layer or block still runs, so that its weights get gradients (of zero) and its cache is filled.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, graph: PruningGraph) -> None:
        self._on: dict[tuple[str, int], bool] = {}
        self.active = True
        """Whether anything is skipped at all."""
        self._handles: list[RemovableHandle] = []
        for dimension in graph.depth:
            for unit in range(dimension.size):
                key = (dimension.name, unit)
                if dimension.kind is Kind.LAYERS:
                    self._handles.append(self._hook_layer(module_at(model, layer_path(dimension.owned[unit][0])), key))
                else:
                    self._handles += (self._hook_exit(module_at(model, at), key) for at in exits(graph, *key))

    def set(self, masks: Mapping[str, torch.Tensor], graph: PruningGraph) -> None:
        """Skip from the next forward pass on what these masks do not let through."""
        for dimension in graph.depth:
            for unit, on in enumerate(masks[dimension.name].tolist()):
                self._on[dimension.name, unit] = on

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _hook_layer(self, layer: nn.Module, key: tuple[str, int]) -> RemovableHandle:
        first = next(iter(inspect.signature(layer.forward).parameters))

        def skip(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
            if self._on[key] or not self.active:
                return output
            entered = args[0] if args else kwargs[first]
            return _with_first(output, lambda value: torch.where(_never(value), value, entered))

        return layer.register_forward_hook(skip, with_kwargs=True)

    def _hook_exit(self, module: nn.Module, key: tuple[str, int]) -> RemovableHandle:
        def skip(_: nn.Module, __: Any, output: Any) -> Any:
            if self._on[key] or not self.active:
                return output
            return _with_first(output, lambda value: torch.where(_never(value), value, torch.zeros_like(value)))

        return module.register_forward_hook(skip)


def _with_first(output: Any, change: Any) -> Any:
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def _never(value: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=torch.bool, device=value.device)
