"""The fingerprint of a model: what a plan is bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

from passes.families import family_named
from passes.graph import MEANINGFUL
from passes.models.base import base_model, plain_name


def fingerprint(model: PreTrainedModel | PeftModel) -> str:
    """sha256 over what the base model computes; adapters do not count.

    That is the part of its configuration that changes the function, and its parameters: names, dtypes, shapes, bytes.
    """
    base = base_model(model)
    whole = Fingerprint(base.config)
    parameters = {plain_name(n): p for n, p in base.named_parameters() if ".lora_" not in n}
    for name, tensor in sorted(parameters.items()):
        whole.add(name, tensor)
    return whole.hexdigest()


class Fingerprint:
    """The fingerprint of a model whose parameters come one by one, by name, ascending."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self._digest = hashlib.sha256(json.dumps(_meaning(config), sort_keys=True, default=str).encode())

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """The next parameter."""
        _add(self._digest.update, {name: tensor})

    def hexdigest(self) -> str:
        """The fingerprint, once all parameters were added."""
        return self._digest.hexdigest()


def _meaning(config: PreTrainedConfig) -> dict[str, Any]:
    """The entries of a configuration that change what the same parameters compute."""
    meaning = {name: getattr(config, name, None) for name in MEANINGFUL}
    family = family_named(config.model_type)
    special = {name: getattr(config, name, None) for name in (family.meaningful if family else ())}
    return meaning | {name: value for name, value in special.items() if value is not None}


def tensors_digest(groups: Iterable[Mapping[str, torch.Tensor]]) -> str:
    """sha256 over groups of tensors, such as the rows of a data set: names, dtypes, shapes, bytes."""
    digest = hashlib.sha256()
    for tensors in groups:
        _add(digest.update, tensors)
    return digest.hexdigest()


def _add(update: Callable[[bytes | memoryview], None], tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
