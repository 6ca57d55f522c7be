"""Small questions to a transformers model, with or without an adapter."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from passes.errors import ModelError

FINITE_AT_A_TIME = 1 << 22
"""Elements that are looked at together for being finite: torch sums half precision by way of an fp32 copy."""


def base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model, without its adapter wrapper."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def plain_name(name: str) -> str:
    """A parameter's or module's name in the model without its adapter: peft's wrapper levels are left out."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def module_at(model: PreTrainedModel | PeftModel, name: str, *, unwrapped: bool = False) -> nn.Module:
    """The module of that plain name (see ``plain_name``), as the forward pass of the model calls it.

    Where adapters wrap it, that is their outermost wrapper, the place for hooks; with ``unwrapped`` the module itself.
    Raises AttributeError if there is none.
    """
    module: nn.Module = base_model(model)
    for part in name.split(".") if name else ():
        module = getattr(_unwrapped(module), part)
    return _unwrapped(module) if unwrapped else module


def parameter_at(model: PreTrainedModel | PeftModel, name: str) -> nn.Parameter:
    """The model's own parameter of that plain name, without what an adapter adds to it."""
    module, _, leaf = name.rpartition(".")
    return cast(nn.Parameter, getattr(module_at(model, module, unwrapped=True), leaf))


def _unwrapped(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_finite(model: torch.nn.Module) -> None:
    """Raises ModelError naming the first parameter that holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        check_finite_tensor(name, parameter)


def check_finite_tensor(name: str, tensor: torch.Tensor) -> None:
    """Raises ModelError if a parameter holds NaN or infinity."""
    for piece in torch.split(tensor.detach().reshape(-1), FINITE_AT_A_TIME):
        # A sum keeps neither NaN nor infinity to itself, and takes no second tensor of truth values.
        if not math.isfinite(float(piece.sum(dtype=torch.float32))) and not torch.isfinite(piece).all():
            raise ModelError(
                f"{name} holds NaN or infinite values; such a model cannot be pruned: mend or reload the checkpoint"
            )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode (no dropout), and back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def takes(model: PreTrainedModel, name: str) -> bool:
    """Whether the model's ``forward`` has a parameter of that name."""
    return name in inspect.signature(type(model).forward).parameters
