"""Small questions to a transformers model, with or without an adapter."""

from __future__ import annotations

from typing import cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from passes.errors import ModelError


def base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model, without its adapter wrapper."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_finite(model: torch.nn.Module) -> None:
    """Raises ModelError naming the first parameter that holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(
                f"{name} holds NaN or infinite values; such a model cannot be pruned: mend or reload the checkpoint"
            )
