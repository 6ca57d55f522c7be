"""The fingerprint of a model: what a plan is bound to."""

from __future__ import annotations

import hashlib
import json

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
    for name, parameter in sorted(parameters.items()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
