"""The caches of torch modules as flat tensors, and what they say of sizes; configs may lie after pruning."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from passes.errors import UnsupportedModelError
from passes.models import reason, vendor

RUN_ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model's forward may raise on inputs or a cache that it was not made for."""


def fill_cache(past: Sequence[torch.Tensor]) -> DynamicCache:
    """A cache that holds ``past`` (key and value of each layer in turn); sliding windows are left to the mask."""
    cache = DynamicCache()
    for index in range(len(past) // 2):
        layer, key, value = DynamicLayer(), past[2 * index], past[2 * index + 1]
        layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value
        cache.layers.append(layer)
    return cache


def cache_tensors(cache: Any) -> tuple[torch.Tensor, ...]:
    """Key and value of each layer in turn, (batch, KV heads, tokens, head_dim)."""
    return tuple(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def fill_cross_cache(own: Sequence[torch.Tensor], cross: Sequence[torch.Tensor]) -> EncoderDecoderCache:
    """The cache of an encoder-decoder: ``own`` for its self-attention, the encoder's as ``cross``."""
    return EncoderDecoderCache(fill_cache(own), fill_cache(cross))


def flat_shapes(model: PreTrainedModel) -> tuple[tuple[int, int], ...]:
    """KV heads and head size of each tensor of a decoder's cache, key before value, layer by layer.

    Read from the cache that the model returns. Raises UnsupportedModelError if that is not a plain list of keys and
    values.
    """
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    cache = DynamicCache()
    try:
        with torch.no_grad():
            returned = vendor.cache_of(model(input_ids=ids, use_cache=True, **vendor.with_cache(model, cache)))
    except RUN_ERRORS as error:
        why = f"its own has layers of {', '.join(own)}" if (own := _own_layers(model, ids)) else reason(error)
        raise UnsupportedModelError(f"{_kind(model)} does not run with a plain cache: {why}") from error
    return plain_shapes(model, returned)


def _own_layers(model: PreTrainedModel, ids: torch.Tensor) -> list[str]:
    """What kinds of layers the cache has that a model makes for itself; none if it makes no such cache."""
    try:
        with torch.no_grad():
            cache = vendor.cache_of(model(input_ids=ids, use_cache=True))
    except RUN_ERRORS:
        return []
    return sorted({type(layer).__name__ for layer in getattr(cache, "layers", ())})


def plain_shapes(model: PreTrainedModel, cache: Any) -> tuple[tuple[int, int], ...]:
    """KV heads and head size of each tensor of ``cache``. Raises UnsupportedModelError if it is not a plain one."""
    if type(cache) is not DynamicCache or not cache.layers:
        name = type(cache).__name__ if cache is not None else "no cache"
        raise UnsupportedModelError(f"{_kind(model)} keeps {name}, not a plain list of keys and values")
    for index, layer in enumerate(cache.layers):
        tensors = (getattr(layer, "keys", None), getattr(layer, "values", None))
        if type(layer) is not DynamicLayer or any(each is None or each.ndim != 4 for each in tensors):
            what = f"layer {index} keeps a {type(layer).__name__}"
            raise UnsupportedModelError(f"{_kind(model)}'s cache is not a plain list of keys and values: {what}")
    return tuple((int(tensor.shape[1]), int(tensor.shape[3])) for tensor in cache_tensors(cache))


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the logits depend on ``position_ids``; BLOOM and Falcon with ALiBi count the mask instead."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    ids, mask = (torch.ones(1, 2, dtype=torch.int64, device=model.device) for _ in range(2))
    near, far = (torch.tensor([[0, step]], device=model.device) for step in (1, 2))
    with torch.no_grad():
        one, other = (model(input_ids=ids, attention_mask=mask, position_ids=each).logits for each in (near, far))
    return not torch.equal(one, other)


def _kind(model: PreTrainedModel) -> str:
    return f"{type(model).__name__} ({model.config.model_type})"
