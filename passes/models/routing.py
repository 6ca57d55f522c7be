"""Routing: which experts a model sent its tokens to, recorded, and replayed in a model that must do the same.

A router takes the best experts. Where two are nearly equal, rounding decides, and a token that goes another way comes
out quite different although nothing is wrong. So a verification lets the routers choose as they did before, and
compares what they computed: their logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from passes.graph import PruningGraph, Role
from passes.models.base import module_at

Choices = Mapping[str, tuple[torch.Tensor, ...]]
"""A router's outputs by its name: logits [tokens, experts], weights and numbers of the chosen [tokens, k]."""


def routers(graph: PruningGraph) -> tuple[str, ...]:
    """The names of the routers of a model."""
    found = {part.module for d in graph.dimensions for part in d.of_role(Role.ROUTE)}
    return tuple(sorted(found))


@contextmanager
def routing(
    model: PreTrainedModel | PeftModel, names: Mapping[str, str], replay: Choices | None = None
) -> Iterator[dict[str, tuple[torch.Tensor, ...]]]:
    """Record what the routers compute inside the block; with ``replay`` they choose as recorded there.

    ``names`` maps the name under which each is recorded to the module's, which differ where layers are renumbered.

    To be entered after masks are put on: the experts are numbered as the router itself numbers them.
    """
    seen: dict[str, tuple[torch.Tensor, ...]] = {}
    handles = []
    for name, module in names.items():
        router = module_at(model, module, unwrapped=True)
        # Before the hooks of masks, which number the experts as in the whole model.
        handles.append(router.register_forward_hook(_hook(name, seen, replay), prepend=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, seen: dict[str, tuple[torch.Tensor, ...]], replay: Choices | None) -> Any:
    def hook(module: nn.Module, inputs: Any, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        seen[name] = tuple(value.detach().cpu() for value in output)
        if replay is None or name not in replay:
            return output
        logits, *_ = output
        chosen = [value.to(logits.device) for value in replay[name][1:]]
        return (logits, *chosen)

    return hook
