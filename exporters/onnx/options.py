"""Options and results of the ONNX export, and the names that its graphs use."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from transformers import PreTrainedModel

from exporters.files import DECODER_FILE as DECODER_FILE
from exporters.files import ENCODER_FILE as ENCODER_FILE
from exporters.files import MODEL_FILE as MODEL_FILE
from passes.errors import OptionError
from passes.models import Parity, rounding_tolerance

DATA_FILE = f"{MODEL_FILE}.data"

BATCH, SEQUENCE, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
"""Names of the dynamic dimensions; lm-eval's onnxruntime backend resolves dimensions by these names."""
ENCODER_SEQUENCE = "encoder_sequence_length"

GraphKind = Literal["decoder", "single", "encoder-decoder"]
DType = Literal["float32", "float16"]
Route = Literal["auto", "builder", "torch"]

FLOAT32_TOLERANCE = 1e-4
MIN_OPSET, MAX_OPSET = 23, 23


def past_names(layers: int) -> list[str]:
    """Names of the cache inputs, layer by layer, key before value."""
    return [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def present_names(layers: int) -> list[str]:
    """Names of the cache outputs, layer by layer, key before value."""
    return [f"present.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def input_names(layers: int, *, positions: bool = True) -> list[str]:
    """Names of all inputs of a decoder in order."""
    first = ["input_ids", "attention_mask", "position_ids"]
    return [*(first if positions else first[:2]), *past_names(layers)]


def cross_names(layers: int) -> list[str]:
    """Names of the encoder's outputs that hold the cross-attention keys and values of each decoder layer."""
    return [f"present.{layer}.encoder.{part}" for layer in range(layers) for part in ("key", "value")]


def seq2seq_past_names(layers: int) -> list[str]:
    """Names of the cache inputs of an encoder-decoder's decoder: its own, then the encoder's, layer by layer."""
    sides = [(side, part) for side in ("decoder", "encoder") for part in ("key", "value")]
    return [f"past_key_values.{layer}.{side}.{part}" for layer in range(layers) for side, part in sides]


def seq2seq_present_names(layers: int) -> list[str]:
    """Names of the cache outputs of an encoder-decoder's decoder, layer by layer."""
    return [f"present.{layer}.decoder.{part}" for layer in range(layers) for part in ("key", "value")]


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """How the ONNX package is made.

    ``opset``: the ONNX opset; 23 is the one that measured best (docs/onnx.md) and the one torch's exporter ends at.
    ``dtype``: type of the weights, logits and cache in the graph; float32 is the right one on CPU.
    ``route``: ``builder`` writes the graph from the weights (Llama, Mistral, Qwen2, Qwen3), ``torch`` traces the model
    with ``torch.onnx.export``, ``auto`` takes the builder where it knows the model and torch otherwise.
    ``greedy_prompts`` and ``greedy_tokens``: probe prompts, and tokens a prompt, that GenAI (or the two graphs of an
    encoder-decoder) must continue as ``generate`` does; 0 prompts leaves that check out.

    Raises ``OptionError`` for an impossible value.
    """

    opset: int = 23
    dtype: DType = "float32"
    route: Route = "auto"
    greedy_prompts: int = 3
    greedy_tokens: int = 12

    def __post_init__(self) -> None:
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise OptionError(
                f"ONNX opset {self.opset} is not supported; use {MIN_OPSET} (Attention, RMSNormalization)"
            )
        if self.dtype not in get_args(DType):
            raise OptionError(f"ONNX dtype {self.dtype!r} is not supported; use one of {', '.join(get_args(DType))}")
        if self.route not in get_args(Route):
            raise OptionError(f"ONNX route {self.route!r} is not known; use one of {', '.join(get_args(Route))}")
        if self.greedy_prompts < 0 or self.greedy_tokens < 1:
            raise OptionError("greedy_prompts must be at least 0 and greedy_tokens at least 1")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype of the graph's weights."""
        return torch.float32 if self.dtype == "float32" else torch.float16

    def cast(self, model: PreTrainedModel) -> PreTrainedModel:
        """The fp32 model itself, or a copy in the graph's type."""
        return model if self.dtype == "float32" else copy.deepcopy(model).to(self.torch_dtype)

    @property
    def tolerance(self) -> float:
        """Relative difference allowed between onnxruntime and torch in fp32: 1e-4, or rounding in half precision."""
        return FLOAT32_TOLERANCE if self.dtype == "float32" else rounding_tolerance(torch.float16)


@dataclass(frozen=True, kw_only=True)
class OnnxPackage:
    """An ONNX folder that was written and verified.

    ``kind``: ``decoder`` (one graph with a cache), ``single`` (one graph without) or ``encoder-decoder`` (two graphs).
    ``files`` are names relative to ``folder``; ``parameters`` counts the weights stored in the graphs (a tied embedding
    once a graph); ``kv_bytes_per_token`` is what one token of one sequence adds to the decoder's cache.
    ``no_genai``: why there is no ``genai_config.json``, or None if there is one.
    """

    folder: Path
    kind: GraphKind
    files: tuple[str, ...]
    opset: int
    dtype: DType
    route: Literal["builder", "torch"]
    parameters: int
    kv_bytes_per_token: int
    no_genai: str | None
    parity: tuple[Parity, ...] = field(default=())
