"""The ONNX graph of a Llama-like decoder, written straight from the module tree.

Every size is read from the modules, never from the config, so layers may differ in width. One graph does prefill,
decode and chunked prefill: the cache comes in with its own length (0 for the first call) and goes out with the new
rows appended. Positions are computed, not looked up: like torch, the graph knows no longest position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from exporters.onnx.graph import GraphBuilder
from exporters.onnx.options import BATCH, PAST, SEQUENCE, TOTAL
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
class DecoderGraph:
    """Inputs and outputs of a finished graph, in order."""

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What every layer reads: rotation angles (batch, sequence, head_dim / 2) and a mask for each sliding window."""

    cos: ir.Value
    sin: ir.Value
    masks: dict[int | None, ir.Value]


def build_decoder(model: PreTrainedModel, graph: GraphBuilder) -> DecoderGraph:
    """Append the whole decoder to ``graph``; the weights stay where they are until the file is written.

    ``input_ids``, ``position_ids``: (batch, sequence) int64; ``attention_mask``: (batch, past + sequence) int64 in
    any padding; cache: (batch, KV heads, past, head_dim). Logits: (batch, sequence, vocabulary), for every position.
    """
    body: Any = model.model
    ids = graph.input("input_ids", ir.DataType.INT64, [BATCH, SEQUENCE])
    mask = graph.input("attention_mask", ir.DataType.INT64, [BATCH, TOTAL])
    positions = graph.input("position_ids", ir.DataType.INT64, [BATCH, SEQUENCE])
    windows = {i: _window(layer, model) for i, layer in enumerate(body.layers) if not is_absent(layer.self_attn)}
    cos, sin = _rotation(graph, body.rotary_emb, positions)
    shared = _Shared(cos=cos, sin=sin, masks=_masks(graph, ids, mask, list(windows.values())))
    embedding = graph.weight("model.embed_tokens.weight", [body.embed_tokens.weight])
    stream = graph.op("Gather", embedding, ids)
    pasts: list[ir.Value] = []
    presents: list[ir.Value] = []
    for index, layer in enumerate(body.layers):
        name = f"model.layers.{index}"
        if index in windows:
            place = len(pasts) // 2
            past = [_past(graph, layer.self_attn, place, part) for part in ("key", "value")]
            normed = _norm(graph, layer.input_layernorm, f"{name}.input_layernorm", stream)
            block = _Attention(layer.self_attn, f"{name}.self_attn", place, windows[index])
            mixed, present = _attention(graph, block, normed, past, shared)
            stream = graph.op("Add", stream, mixed)
            pasts += past
            presents += present
        if not is_absent(layer.mlp):
            normed = _norm(graph, layer.post_attention_layernorm, f"{name}.post_attention_layernorm", stream)
            stream = graph.op("Add", stream, _mlp(graph, layer.mlp, f"{name}.mlp", normed))
    logits = _head(graph, model, _norm(graph, body.norm, "model.norm", stream), embedding)
    return DecoderGraph(inputs=(ids, mask, positions, *pasts), outputs=(logits, *presents))


def is_absent(block: nn.Module | None) -> bool:
    """Whether a block is gone: None, or all of its parameters have no elements (``passes.models.resized.Absent``)."""
    if block is None:
        return True
    sizes = [parameter.numel() for parameter in block.parameters()]
    return bool(sizes) and not any(sizes)


def kv_heads(attention: Any) -> int:
    """KV heads of an attention module, from the shape of its key projection."""
    return int(attention.k_proj.weight.shape[0] // attention.head_dim)


def _window(layer: Any, model: PreTrainedModel) -> int | None:
    """The sliding window of a layer in tokens: the attention module says it, or an entry of the configuration."""
    if hasattr(layer.self_attn, "sliding_window"):
        window = layer.self_attn.sliding_window
    else:
        family = family_named(model.config.model_type)
        entry = family.window if family is not None else None
        window = getattr(model.config, entry) if entry is not None else None
    return None if window is None else int(window)


def _rotation(graph: GraphBuilder, rotary: Any, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
    """cos and sin of position x frequency, in fp32 as in torch, (batch, sequence, head_dim / 2)."""
    frequencies = graph.constant("rotary_frequencies", rotary.inv_freq.detach().cpu().float().numpy())
    steps = graph.op("Unsqueeze", graph.op("Cast", positions, to=ir.DataType.FLOAT.value), graph.ints(2))
    angles = graph.op("Mul", steps, frequencies)
    return _scaled(graph, graph.op("Cos", angles), rotary), _scaled(graph, graph.op("Sin", angles), rotary)


def _scaled(graph: GraphBuilder, values: ir.Value, rotary: Any) -> ir.Value:
    if rotary.attention_scaling != 1.0:
        scale = graph.constant("rotary_scaling", np.array(rotary.attention_scaling, np.float32))
        values = graph.op("Mul", values, scale)
    return values if graph.float_type == ir.DataType.FLOAT else graph.op("Cast", values, to=graph.float_type.value)


def _masks(
    graph: GraphBuilder, ids: ir.Value, mask: ir.Value, windows: Sequence[int | None]
) -> dict[int | None, ir.Value]:
    """Additive masks (batch, 1, sequence, total), one for each different window: causal, and nothing reads padding.

    Windows count positions, not slots (``exporters.onnx.windows``).
    """
    total, sequence = graph.op("Shape", mask, start=1, end=2), graph.op("Shape", ids, start=1, end=2)
    keys = graph.op("Range", graph.scalar(0), graph.op("Squeeze", total), graph.scalar(1))
    past = graph.op("Sub", total, sequence)
    rows = graph.op("Range", graph.op("Squeeze", past), graph.op("Squeeze", total), graph.scalar(1))
    queries = graph.op("Unsqueeze", rows, graph.ints(1))
    real = graph.op("Unsqueeze", graph.op("Cast", mask, to=ir.DataType.BOOL.value), graph.ints(1, 2))
    causal = graph.op("And", graph.op("LessOrEqual", keys, queries), real)
    zero, masked = graph.floats("float_zero", 0.0), graph.floats("float_masked", graph.masked)
    masks = {}
    for window in dict.fromkeys(windows):
        allowed = causal
        if window is not None:
            positions = graph.op("CumSum", mask, graph.scalar(1))
            own = graph.op("Slice", positions, past, total, graph.ints(1))
            first = graph.op("Sub", graph.op("Unsqueeze", own, graph.ints(1, 3)), graph.scalar(window))
            near = graph.op("Greater", graph.op("Unsqueeze", positions, graph.ints(1, 2)), first)
            allowed = graph.op("And", causal, near)
        masks[window] = graph.op("Where", allowed, zero, masked)
    return masks


def _past(graph: GraphBuilder, attention: Any, index: int, part: str) -> ir.Value:
    shape = [BATCH, kv_heads(attention), PAST, attention.head_dim]
    return graph.input(f"past_key_values.{index}.{part}", graph.float_type, shape)


@dataclass(frozen=True)
class _Attention:
    """An attention module, its name, its place in the cache and its sliding window."""

    module: Any
    name: str
    place: int
    window: int | None


def _attention(
    graph: GraphBuilder, block: _Attention, hidden: ir.Value, past: list[ir.Value], shared: _Shared
) -> tuple[ir.Value, list[ir.Value]]:
    """What the block adds to the residual stream, and its present key and value."""
    attention, name, index = block.module, block.name, block.place
    size = int(attention.head_dim)
    kv = kv_heads(attention)
    heads = int(attention.q_proj.weight.shape[0] // size)
    packed = _linear(graph, f"{name}.qkv_proj", hidden, attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = graph.ops("Split", 3, packed, graph.ints(heads * size, kv * size, kv * size), axis=-1)
    query = _head_norm(graph, attention, "q_norm", name, query)
    key = _head_norm(graph, attention, "k_norm", name, key)
    query = graph.op("RotaryEmbedding", query, shared.cos, shared.sin, num_heads=heads)
    key = graph.op("RotaryEmbedding", key, shared.cos, shared.sin, num_heads=kv)
    mixed, *present = graph.ops(
        "Attention",
        3,
        query,
        key,
        value,
        shared.masks[block.window],
        *past,
        names=("", f"present.{index}.key", f"present.{index}.value"),
        q_num_heads=heads,
        kv_num_heads=kv,
        scale=float(attention.scaling),
    )
    for each in present:
        graph.output(each, [BATCH, kv, TOTAL, size])
    return _linear(graph, f"{name}.o_proj", mixed, attention.o_proj), present


def _head_norm(graph: GraphBuilder, attention: Any, norm: str, name: str, hidden: ir.Value) -> ir.Value:
    """Qwen3's norm of every head on its own; the identity where the module has none."""
    module = getattr(attention, norm, None)
    if module is None:
        return hidden
    split = graph.op("Reshape", hidden, graph.ints(0, 0, -1, int(attention.head_dim)))
    return graph.op("Reshape", _norm(graph, module, f"{name}.{norm}", split), graph.ints(0, 0, -1))


def _mlp(graph: GraphBuilder, mlp: Any, name: str, hidden: ir.Value) -> ir.Value:
    packed = _linear(graph, f"{name}.gate_up_proj", hidden, mlp.gate_proj, mlp.up_proj)
    gate, up = graph.ops("Split", 2, packed, axis=-1, num_outputs=2)
    active = graph.op("Mul", gate, graph.op("Sigmoid", gate))
    return _linear(graph, f"{name}.down_proj", graph.op("Mul", active, up), mlp.down_proj)


def _norm(graph: GraphBuilder, norm: Any, name: str, hidden: ir.Value) -> ir.Value:
    weight = graph.weight(f"{name}.weight", [norm.weight])
    return graph.op("RMSNormalization", hidden, weight, axis=-1, epsilon=float(norm.variance_epsilon))


def _linear(graph: GraphBuilder, name: str, hidden: ir.Value, *linears: nn.Linear) -> ir.Value:
    """Linear layers with the same input, their outputs side by side: one multiplication."""
    weight = graph.weight(f"{name}.weight", [each.weight for each in linears], transpose=True)
    product = graph.op("MatMul", hidden, weight)
    if all(each.bias is None for each in linears):
        return product
    biases = [torch.zeros(each.out_features) if each.bias is None else each.bias for each in linears]
    return graph.op("Add", product, graph.weight(f"{name}.bias", biases))


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
