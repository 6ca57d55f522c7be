"""Options and results of the ONNX export, and the names that its graphs use."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from exporters.files import DECODER_FILE as DECODER_FILE
from exporters.files import ENCODER_FILE as ENCODER_FILE
from exporters.files import MODEL_FILE as MODEL_FILE
from exporters.onnx.precision import FLOAT32, PRECISIONS, STORED, Precision
from exporters.options import CALIBRATED, OnnxOptions
from passes.models import Parity, Task, task_of
from passes.options import AUTO

DATA_FILE = f"{MODEL_FILE}.data"

BATCH, SEQUENCE, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
"""Names of the dynamic dimensions; lm-eval's onnxruntime backend resolves dimensions by these names."""
ENCODER_SEQUENCE = "encoder_sequence_length"

GraphKind = Literal["decoder", "single", "encoder-decoder"]


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


def settled(options: OnnxOptions, model: PreTrainedModel) -> tuple[OnnxOptions, ...]:
    """The options of each package that is asked for, one precision each: ``auto`` is what the model is stored in."""
    stored = STORED.get(model.dtype, FLOAT32.name)
    names = dict.fromkeys(stored if name == AUTO else name for name in options.precision)
    text = {name: options.calibration if name == CALIBRATED else None for name in names}
    speaks = options.rounding == AUTO and task_of(model) is Task.CAUSAL_LM
    rows = {name: options.rows if name == CALIBRATED and speaks else None for name in names}
    return tuple(replace(options, precision=(name,), calibration=text[name], rows=rows[name]) for name in names)


def precision_of(options: OnnxOptions) -> Precision:
    """The one precision of settled options. Raises OptionError, PluginError."""
    (name,) = options.precision
    return PRECISIONS.named(name)


def cast(options: OnnxOptions, model: PreTrainedModel) -> PreTrainedModel:
    """The fp32 model itself, or a copy in the graph's type."""
    dtype = precision_of(options).torch_dtype
    return model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)


@dataclass(frozen=True, kw_only=True)
class OnnxPackage:
    """An ONNX folder that was written and verified.

    ``kind``: ``decoder`` (one graph with a cache), ``single`` (one graph without) or ``encoder-decoder`` (two graphs).
    ``files`` are names relative to ``folder``; ``parameters`` counts the weights stored in the graphs (a tied embedding
    once a graph); ``kv_bytes_per_token`` is what one token of one sequence adds to the decoder's cache.
    ``precision`` is its name; ``file_bytes`` what the graphs and their weights take on disk.
    ``plain_attention``: why a decoder has opset 23's Attention; None where it has GroupQueryAttention, or no cache.
    ``no_genai``: why there is no ``genai_config.json``, or None if there is one.
    """

    folder: Path
    kind: GraphKind
    files: tuple[str, ...]
    opset: int
    precision: str
    route: Literal["builder", "torch"]
    parameters: int
    file_bytes: int
    kv_bytes_per_token: int
    no_genai: str | None
    plain_attention: str | None = None
    parity: tuple[Parity, ...] = field(default=())
