"""The ONNX graph of a Llama-like decoder, written straight from the module tree.

Every size is read from the modules, never from the config, so layers may differ in width. One graph does prefill,
decode and chunked prefill: the cache comes in with its own length (0 for the first call) and goes out with the new
rows appended. How attention is said is ``exporters.onnx.attention``'s and ``exporters.onnx.group_query``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from exporters.onnx.attention import Attention, CachedAttention, PlainAttention
from exporters.onnx.graph import GraphBuilder
from exporters.onnx.group_query import GroupQueryAttention
from exporters.onnx.layers import is_absent, linear, norm
from exporters.onnx.options import BATCH, SEQUENCE
from exporters.onnx.verify.probes import position_limit
from passes.families import family_named

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not depend on the length of the input."""

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def has_builder(config: PreTrainedConfig) -> bool:
    """Whether the configuration is of such a type."""
    family = family_named(config.model_type)
    return family is not None and family.onnx_builder


def why_not_builder(model: PreTrainedModel) -> str | None:
    """None if ``build_decoder`` knows this model's structure, else the reason why it does not."""
    config = model.config
    if not has_builder(config):
        return f"no graph builder is known to fit the model type {config.model_type!r}"
    if config.hidden_act not in ("silu", "swish"):
        return f"activation {config.hidden_act!r} is not SiLU"
    rope_type = getattr(model.model.rotary_emb, "rope_type", None)
    if rope_type not in ROPE_TYPES:
        return f"rotary embedding type {rope_type!r} depends on the input's length"
    for index, layer in enumerate(model.model.layers):
        linears = [] if is_absent(layer.self_attn) else [getattr(layer.self_attn, name, None) for name in PROJECTIONS]
        linears += [] if is_absent(layer.mlp) else [getattr(layer.mlp, name, None) for name in MLP_PROJECTIONS]
        if any(type(each) is not nn.Linear for each in linears):
            return f"layer {index} has a projection that is not a plain Linear"
    return None


@dataclass(frozen=True, kw_only=True)
class LayerValues:
    """The names of what a layer reads and leaves: the stream (and what is to be added to it), its part of the cache."""

    reads: tuple[str, ...]
    leaves: tuple[str, ...]
    past: tuple[str, ...]
    present: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DecoderGraph:
    """Inputs and outputs of a finished graph, in order.

    ``layers``: the values of the residual stream and of the cache that each layer reads and leaves behind; the stream
    that one layer leaves is what the next one reads.
    """

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    layers: tuple[LayerValues, ...]


def build_decoder(model: PreTrainedModel, graph: GraphBuilder, *, group_query: bool = False) -> DecoderGraph:
    """Append the whole decoder to ``graph``; the weights stay where they are until the file is written.

    ``input_ids``: (batch, sequence) int64; ``attention_mask``: (batch, past + sequence) int64 in any padding; cache:
    (batch, KV heads, past, head_dim). Logits: (batch, sequence, vocabulary), for every position. Attention is opset
    23's, which also takes ``position_ids``, or ``group_query`` (``exporters.onnx.group_query``).
    """
    body: Any = model.model
    windows = {i: _window(layer, model) for i, layer in enumerate(body.layers) if not is_absent(layer.self_attn)}
    attention: Attention
    if group_query:
        attention = GroupQueryAttention(graph, body.rotary_emb, position_limit(model) or 0)
    else:
        attention = PlainAttention(graph, body.rotary_emb, list(windows.values()))
    embedding = graph.weight("model.embed_tokens.weight", [body.embed_tokens.weight])
    stream = _Stream(attention, graph.op("Gather", embedding, attention.ids))
    pasts: list[ir.Value] = []
    presents: list[ir.Value] = []
    layers = []
    for index, layer in enumerate(body.layers):
        name, reads, cached = f"model.layers.{index}", stream.names, len(pasts)
        if index in windows:
            normed = stream.normed(layer.input_layernorm, f"{name}.input_layernorm")
            block = CachedAttention(layer.self_attn, f"{name}.self_attn", len(pasts) // 2, windows[index])
            stream.more, past, present = attention.block(block, normed)
            pasts += past
            presents += present
        if not is_absent(layer.mlp):
            normed = stream.normed(layer.post_attention_layernorm, f"{name}.post_attention_layernorm")
            stream.more = _mlp(graph, layer.mlp, f"{name}.mlp", normed)
        own = [tuple(str(each.name) for each in values[cached:]) for values in (pasts, presents)]
        layers.append(LayerValues(reads=reads, leaves=stream.names, past=own[0], present=own[1]))
    last = attention.in_order(stream.normed(body.norm, "model.norm"))
    outputs = (_head(graph, model, last, embedding), *presents)
    return DecoderGraph(inputs=(*attention.inputs, *pasts), outputs=outputs, layers=tuple(layers))


@dataclass
class _Stream:
    """The residual stream; what a block adds to it, ``more``, is added where the next norm reads it."""

    attention: Attention
    value: ir.Value
    more: ir.Value | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of both."""
        return tuple(str(each.name) for each in (self.value, self.more) if each is not None)

    def normed(self, module: Any, name: str) -> ir.Value:
        """The RMS norm of the stream as it now is."""
        if self.more is None:
            return norm(self.attention.graph, module, name, self.value)
        self.value, normed = self.attention.add_and_norm(self.value, self.more, module, name)
        self.more = None
        return normed


def _window(layer: Any, model: PreTrainedModel) -> int | None:
    """The sliding window of a layer in tokens: the attention module says it, or an entry of the configuration."""
    if hasattr(layer.self_attn, "sliding_window"):
        window = layer.self_attn.sliding_window
    else:
        family = family_named(model.config.model_type)
        entry = family.window if family is not None else None
        window = getattr(model.config, entry) if entry is not None else None
    return None if window is None else int(window)


def _mlp(graph: GraphBuilder, mlp: Any, name: str, hidden: ir.Value) -> ir.Value:
    packed = linear(graph, f"{name}.gate_up_proj", hidden, mlp.gate_proj, mlp.up_proj)
    gate, up = graph.ops("Split", 2, packed, axis=-1, num_outputs=2)
    active = graph.op("Mul", gate, graph.op("Sigmoid", gate))
    return linear(graph, f"{name}.down_proj", graph.op("Mul", active, up), mlp.down_proj)


def _head(graph: GraphBuilder, model: PreTrainedModel, hidden: ir.Value, embedding: ir.Value) -> ir.Value:
    """Logits of every position. A tied head reads the embedding; onnxruntime folds the transpose when it loads."""
    head: Any = model.lm_head
    if head.weight is model.get_input_embeddings().weight:
        weight = graph.op("Transpose", embedding, perm=[1, 0])
    else:
        weight = graph.weight("lm_head.weight", [head.weight], transpose=True)
    logits = graph.op("MatMul", hidden, weight, name="logits" if head.bias is None else "")
    if head.bias is not None:
        logits = graph.op("Add", logits, graph.weight("lm_head.bias", [head.bias]), name="logits")
    return graph.output(logits, [BATCH, SEQUENCE, int(head.weight.shape[0])])
