"""The fingerprint of a model: what a plan is bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from passes.families import FAMILIES
from passes.graph import MEANINGFUL
from passes.models.base import base_model, plain_name


def fingerprint(model: PreTrainedModel | PeftModel) -> str:
    """sha256 over what the base model computes; adapters do not count.

    That is the part of its configuration that changes the function, and its parameters: names, dtypes, shapes, bytes.
    """
    base = base_model(model)
    meaning = {name: getattr(base.config, name, None) for name in MEANINGFUL}
    family = FAMILIES.get(base.config.model_type)
    special = {name: getattr(base.config, name, None) for name in (family.meaningful if family else ())}
    meaning |= {name: value for name, value in special.items() if value is not None}
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True, default=str).encode())
    parameters = {plain_name(n): p for n, p in base.named_parameters() if ".lora_" not in n}
    _add(digest.update, parameters)
    return digest.hexdigest()


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
