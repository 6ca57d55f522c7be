"""Dense models in which removed units cannot be heard, written out from the architectures; no mask and no graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

Kept = Mapping[str, tuple[int, ...]]


def _gone(kept: Kept, dimension: str, size: int) -> Iterable[int]:
    return [unit for unit in range(size) if unit not in kept[dimension]]


def _columns(linear: nn.Module, unit: int, size: int) -> None:
    """The inputs of one unit, ``size`` of them a unit, count for nothing. Conv1D stores [in, out]."""
    for column in range(unit * size, (unit + 1) * size):
        if isinstance(linear, nn.Linear):
            linear.weight[:, column] = 0
        else:
            linear.weight[column, :] = 0


def _llama(model: PreTrainedModel, kept: Kept) -> None:
    for i, layer in enumerate(model.model.layers):
        for group in _gone(kept, f"layers.{i}.kv_groups", 4):
            _columns(layer.self_attn.o_proj, group, 2 * layer.self_attn.head_dim)
        for channel in _gone(kept, f"layers.{i}.mlp_channels", 64):
            _columns(layer.mlp.down_proj, channel, 1)


def _olmo2(model: PreTrainedModel, kept: Kept) -> None:
    """The norms over all heads must not hear removed heads either: their queries and keys are zero."""
    _llama(model, kept)
    for i, layer in enumerate(model.model.layers):
        for group in _gone(kept, f"layers.{i}.kv_groups", 4):
            for head in (2 * group, 2 * group + 1):
                layer.self_attn.q_proj.weight[head * 4 : head * 4 + 4] = 0
            layer.self_attn.k_proj.weight[group * 4 : group * 4 + 4] = 0


def _gpt2(model: PreTrainedModel, kept: Kept) -> None:
    for i, layer in enumerate(model.transformer.h):
        for head in _gone(kept, f"layers.{i}.kv_groups", 8):
            _columns(layer.attn.c_proj, head, 4)
        for channel in _gone(kept, f"layers.{i}.mlp_channels", 64):
            _columns(layer.mlp.c_proj, channel, 1)


def _gpt_neox(model: PreTrainedModel, kept: Kept) -> None:
    for i, layer in enumerate(model.gpt_neox.layers):
        for head in _gone(kept, f"layers.{i}.kv_groups", 8):
            _columns(layer.attention.dense, head, 4)
        for channel in _gone(kept, f"layers.{i}.mlp_channels", 64):
            _columns(layer.mlp.dense_4h_to_h, channel, 1)


def _decoder_h(heads: str, units: int, size: int, channels: int) -> Callable[[PreTrainedModel, Kept], None]:
    """Falcon and BLOOM: ``units`` units of ``size`` inputs of the output projection."""

    def silence(model: PreTrainedModel, kept: Kept) -> None:
        for i, layer in enumerate(model.transformer.h):
            for unit in _gone(kept, f"layers.{i}.{heads}", units):
                _columns(layer.self_attention.dense, unit, size)
            for channel in _gone(kept, f"layers.{i}.mlp_channels", channels):
                _columns(layer.mlp.dense_4h_to_h, channel, 1)

    return silence


def _bert(model: PreTrainedModel, kept: Kept) -> None:
    for i, layer in enumerate(model.bert.encoder.layer):
        for head in _gone(kept, f"layers.{i}.kv_groups", 8):
            _columns(layer.attention.output.dense, head, 4)
        for channel in _gone(kept, f"layers.{i}.mlp_channels", 64):
            _columns(layer.output.dense, channel, 1)


def _t5(model: PreTrainedModel, kept: Kept) -> None:
    """The heads of a stack are those of its position bias, which all its layers share."""
    for stack, name in ((model.encoder, "encoder"), (model.decoder, "decoder")):
        for i, block in enumerate(stack.block):
            for head in _gone(kept, f"{name}.kv_groups", 8):
                _columns(block.layer[0].SelfAttention.o, head, 8)
            for channel in _gone(kept, f"{name}.layers.{i}.mlp_channels", 64):
                _columns(block.layer[-1].DenseReluDense.wo, channel, 1)
            if name == "decoder":
                for head in _gone(kept, f"decoder.layers.{i}.cross_kv_groups", 8):
                    _columns(block.layer[1].EncDecAttention.o, head, 8)


def _bart(model: PreTrainedModel, kept: Kept) -> None:
    for stack, name in ((model.model.encoder, "encoder"), (model.model.decoder, "decoder")):
        for i, layer in enumerate(stack.layers):
            for head in _gone(kept, f"{name}.layers.{i}.kv_groups", 8):
                _columns(layer.self_attn.out_proj, head, 4)
            for channel in _gone(kept, f"{name}.layers.{i}.mlp_channels", 64):
                _columns(layer.fc2, channel, 1)
            if name == "decoder":
                for head in _gone(kept, f"decoder.layers.{i}.cross_kv_groups", 8):
                    _columns(layer.encoder_attn.out_proj, head, 4)


def _mixtral(model: PreTrainedModel, kept: Kept) -> None:
    for i, layer in enumerate(model.model.layers):
        for group in _gone(kept, f"layers.{i}.kv_groups", 4):
            _columns(layer.self_attn.o_proj, group, 2 * layer.self_attn.head_dim)
        down = layer.mlp.experts.down_proj
        for expert in kept[f"layers.{i}.experts"]:
            for channel in _gone(kept, f"layers.{i}.expert_channels.{expert}", down.shape[-1]):
                down[expert][:, channel] = 0
        layer.mlp.gate.forward = _routing(layer.mlp.gate, kept[f"layers.{i}.experts"])


def _routing(router: nn.Module, experts: tuple[int, ...]) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """For each token the two experts of the largest logits among those that are left, and their softmax."""

    def route(hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = [[float(token @ router.weight[expert]) for expert in experts] for token in tokens]
        chosen = [sorted(range(len(experts)), key=lambda j, row=row: -row[j])[:2] for row in logits]
        weights = [torch.tensor([row[j] for j in pair]).softmax(0) for row, pair in zip(logits, chosen, strict=True)]
        numbers = torch.tensor([[experts[j] for j in pair] for pair in chosen])
        return tokens @ router.weight.T, torch.stack(weights), numbers

    return route


BY_HAND: dict[str, Callable[[PreTrainedModel, Kept], None]] = {
    "llama": _llama,
    "phi3": _llama,
    "olmo2": _olmo2,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "bloom": _decoder_h("kv_groups", 8, 4, 128),
    "falcon-mqa": _decoder_h("query_heads", 8, 4, 64),
    "falcon-grouped": _decoder_h("kv_groups", 4, 8, 64),
    "falcon-mha-alibi": _decoder_h("kv_groups", 8, 4, 64),
    "bert": _bert,
    "t5": _t5,
    "t5-gated": _t5,
    "bart": _bart,
    "mixtral": _mixtral,
    "qwen3_moe": _mixtral,
}


@torch.no_grad()
def silenced(name: str, model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A dense copy of a model of the zoo in which nothing hears the removed units."""
    found = copy.deepcopy(model)
    BY_HAND[name](found, kept)
    return found
