"""The general road to ONNX: trace any causal language model with ``torch.onnx.export``.

Slower (it imports torch's whole decomposition registry) and, for the families that ``onnx_decoder`` knows, no faster
to run; it serves every other model whose cache is a plain list of keys and values.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.export import Dim
from transformers import DynamicCache, PreTrainedModel

from exporters.onnx_options import BATCH, PAST, SEQUENCE, TOTAL, input_names, present_names
from passes.errors import UnsupportedModelError

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)

SAMPLE_BATCH, SAMPLE_TOKENS, SAMPLE_PAST = 2, 3, 4
"""All at least 2 and all different: torch.export specialises on 0, on 1, and on sizes that happen to be equal."""


class FlatCache(nn.Module):
    """The model with its cache as flat tensors: ``(ids, mask, positions, *past) -> (logits, *present)``."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Shapes as in ``onnx_decoder.build_decoder``; past and present hold key and value of each layer in turn."""
        cache = fill_cache(past)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (output.logits, *cache_tensors(output.past_key_values))


def fill_cache(past: tuple[torch.Tensor, ...]) -> DynamicCache:
    """A cache that holds ``past`` (key and value of each layer in turn); sliding windows are left to the mask."""
    cache = DynamicCache()
    for layer in range(len(past) // 2):
        cache.update(past[2 * layer], past[2 * layer + 1], layer)
    return cache


def cache_tensors(cache: Any) -> tuple[torch.Tensor, ...]:
    """Key and value of each layer in turn, (batch, KV heads, tokens, head_dim)."""
    return tuple(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def trace_to_onnx(model: PreTrainedModel, path: Path, *, opset: int) -> int:
    """Write ``path`` and its data file beside it; return the number of weights in the graph.

    Raises ``UnsupportedModelError`` if torch cannot trace the model.
    """
    wrapper = FlatCache(model).eval()
    sample = _sample(model)
    layers = (len(sample) - 3) // 2
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                wrapper,
                sample,
                dynamo=True,
                opset_version=opset,
                input_names=input_names(layers),
                output_names=["logits", *present_names(layers)],
                dynamic_shapes=_dynamic_shapes(layers),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        message = f"torch.onnx.export cannot trace {type(model).__name__} ({model.config.model_type}): {error}"
        raise UnsupportedModelError(message) from error
    if program is None:
        raise UnsupportedModelError(f"torch.onnx.export returned nothing for {type(model).__name__}")
    program.save(str(path), external_data=True)
    weights = program.model.graph.initializers.values()
    return sum(math.prod(int(size) for size in each.shape or ()) for each in weights if each.dtype in FLOATS)


@torch.no_grad()
def _sample(model: PreTrainedModel) -> tuple[torch.Tensor, ...]:
    """Inputs to trace with; one row is padded, because an all-ones mask would be optimised away."""
    ids = torch.ones(SAMPLE_BATCH, SAMPLE_PAST, dtype=torch.int64)
    past = cache_tensors(model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True).past_key_values)
    mask = torch.ones(SAMPLE_BATCH, SAMPLE_PAST + SAMPLE_TOKENS, dtype=torch.int64)
    mask[0, 0] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, SAMPLE_PAST:]
    return ids[:, :SAMPLE_TOKENS].clone(), mask, positions, *past


def _dynamic_shapes(layers: int) -> tuple[object, ...]:
    cache = {0: Dim(BATCH), 2: Dim(PAST)}
    tokens = {0: Dim(BATCH), 1: Dim(SEQUENCE)}
    return tokens, {0: Dim(BATCH), 1: Dim(TOTAL)}, tokens, tuple(dict(cache) for _ in range(2 * layers))
