"""Where a loaded model lies, and in which dtype: decided once, when it is loaded."""

from __future__ import annotations

from typing import TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from passes.errors import OptionError
from passes.models import base_model, packed_weights, vendor
from passes.pipeline import RunContext, device_named, dtype_named

AnyModel = TypeVar("AnyModel", PreTrainedModel, PeftModel, PreTrainedModel | PeftModel)


def placed(model: AnyModel, run: RunContext) -> AnyModel:
    """The model itself, on the run's device and with weights of the run's dtype.

    Buffers keep their dtype, which rotary embeddings need, and so does an adapter, which trains in fp32. A model of
    packed weights stays where it was loaded. Raises OptionError for a device that is not there, or another dtype of
    packed weights.
    """
    if packed_weights(base_model(model)):
        dtype = dtype_named(run.dtype)
        if dtype is not None and dtype != base_model(model).dtype:
            raise OptionError(f"the dtype of a model of 8- or 4-bit weights is its own: leave {run.dtype} out")
        return model
    cast_to(run, base_model(model))
    return model.to(device_named(run.device))


@torch.no_grad()
def cast_to(run: RunContext, model: PreTrainedModel) -> None:
    """Have a model's weights in the run's dtype; it may be on the meta device."""
    dtype = dtype_named(run.dtype)
    if dtype is None:
        return
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and ".lora_" not in name:
            parameter.data = parameter.data.to(torch.float32 if vendor.stays_in_fp32(model, name, dtype) else dtype)
    model.config.dtype = dtype


@torch.no_grad()
def as_loaded(model: PreTrainedModel) -> None:
    """Have in fp32 what the class has there when it is loaded in the model's dtype, though all of it was rounded."""
    for name, parameter in model.named_parameters():
        if vendor.stays_in_fp32(model, name, parameter.dtype):
            parameter.data = parameter.data.float()
