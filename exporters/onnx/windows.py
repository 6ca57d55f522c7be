"""Sliding windows counted in positions: between a padded prompt and its continuation slots hold nothing to count.

GenAI pads a batch of prompts on the right and goes on behind the padding (onnxruntime-genai issues 1682 and 1694), so
that the keys of a row are no longer neighbours in the cache. transformers counts slots, which is the same only without
such gaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from transformers import DynamicCache, PreTrainedModel

from exporters.onnx.torch_caches import RUN_ERRORS
from passes.models import vendor

FULL, SLIDING = "full_attention", "sliding_attention"

WindowMasks: TypeAlias = "Mapping[str, torch.Tensor] | torch.Tensor"
"""Additive masks (batch, 1, sequence, total): by type of layer, or the one that all layers share."""


def window_of(model: PreTrainedModel) -> int | None:
    """The sliding window of a model in tokens, or None if no layer has one."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return None
    types = getattr(config, "layer_types", None)
    return int(window) if types is None or SLIDING in types else None


def masks_by_type(model: PreTrainedModel) -> bool:
    """Whether the model takes a mask a type of layer; else it takes one for all. Tried on one token."""
    if getattr(model.config.get_text_config(), "layer_types", None) is None:
        return False
    one = torch.ones(1, 1, dtype=torch.int64, device=model.device)
    masks = position_masks(one, 1, window_of(model) or 1, model.dtype)
    try:
        with torch.no_grad():
            model(input_ids=one, attention_mask=masks, use_cache=True, **vendor.with_cache(model, DynamicCache()))
    except RUN_ERRORS:
        return False
    return True


def position_masks(mask: torch.Tensor, tokens: int, window: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The masks (batch, 1, tokens, total) of full and sliding layers, for the last ``tokens`` of ``mask``.

    A query reads the real keys up to itself, and in sliding layers those less than ``window`` positions before it.
    """
    slots, positions = torch.arange(mask.shape[1], device=mask.device), mask.cumsum(-1)
    own = torch.arange(tokens, device=mask.device) + (mask.shape[1] - tokens)  # a slice would have no size in a trace
    allowed = (slots <= own[:, None])[None] & mask.bool()[:, None]
    near = positions[:, None] > positions.index_select(1, own)[:, :, None] - window
    zero, least = torch.zeros((), dtype=dtype), torch.tensor(torch.finfo(dtype).min, dtype=dtype)
    kept = {FULL: allowed, SLIDING: allowed & near}
    return {name: torch.where(each, zero, least)[:, None] for name, each in kept.items()}
