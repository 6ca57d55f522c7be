"""Bases of 8- and 4-bit numbers (bitsandbytes): what they are, how one is loaded, and its weights in full precision."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, cast

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from passes.errors import OptionError
from passes.models.vendor import is_packed

__all__ = ["full_precision", "is_packed", "packed_weights", "packing_of"]

BITSANDBYTES = "bitsandbytes"


def packed_weights(model: PreTrainedModel) -> bool:
    """Whether a model's linear layers hold 8- or 4-bit numbers."""
    return any(is_packed(parameter) for parameter in model.parameters())


def packing_of(load_in: str, dtype: torch.dtype, device: torch.device) -> Mapping[str, Any]:
    """The arguments by which ``from_pretrained`` packs linear layers: ``8bit``, or ``4bit`` (NF4 with packed scales).

    Dettmers et al. 2022, arXiv 2208.07339; Dettmers et al. 2023, arXiv 2305.14314. ``dtype`` is what 4-bit layers
    compute in. Raises OptionError where bitsandbytes is not installed.
    """
    if find_spec(BITSANDBYTES) is None:
        raise OptionError(f"load_in={load_in!r} (--load-in) needs bitsandbytes: pip install bitsandbytes")
    if load_in == "8bit":
        made = BitsAndBytesConfig(load_in_8bit=True)
    else:
        made = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": made, "device_map": {"": str(device)}}


def full_precision(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its packed weights in floating point, as they are when it computes. It is changed in place."""
    return cast(PreTrainedModel, model.dequantize())
