"""Which stock transformers class a compact model is built with, and building it.

Uniform widths fit the source's own class, with one exception: stock Llama refuses a head count that does not divide
the hidden size, although nothing in the model needs that. Such a model is written as Mistral without a sliding window,
which has the same state-dict keys and computes the same function.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from passes.errors import UnsupportedModelError

_LLAMA_ONLY = ("attention_bias", "mlp_bias")


def loadable_group_counts(config: PreTrainedConfig) -> tuple[int, ...]:
    """The KV-group counts, ascending, with which a stock class can load the model."""
    counts = range(1, config.num_key_value_heads + 1)
    if config.model_type == "llama" and any(getattr(config, name, False) for name in _LLAMA_ONLY):
        per_group = config.num_attention_heads // config.num_key_value_heads
        return tuple(c for c in counts if config.hidden_size % (c * per_group) == 0 or c == config.num_key_value_heads)
    return tuple(counts)


def compact_config(config: PreTrainedConfig, *, groups: int, channels: int, head_dim: int) -> PreTrainedConfig:
    """The configuration of the compact model: ``groups`` KV heads and ``channels`` MLP channels in every layer.

    ``head_dim`` is always written, since deriving it from the hidden size is wrong once heads are gone.
    """
    per_group = config.num_attention_heads // config.num_key_value_heads
    widths = {
        "num_attention_heads": groups * per_group,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "intermediate_size": channels,
    }
    values: dict[str, Any] = {**config.to_dict(), **widths}
    if isinstance(config, LlamaConfig) and config.hidden_size % widths["num_attention_heads"]:
        return _as_mistral(values)
    return type(config).from_dict(values)


def _as_mistral(values: dict[str, Any]) -> MistralConfig:
    set_anyway = [name for name in _LLAMA_ONLY if values.get(name)]
    if set_anyway:
        raise UnsupportedModelError(
            f"{values['num_attention_heads']} heads do not divide the hidden size {values['hidden_size']}, which stock "
            f"Llama refuses, and {set_anyway[0]}=True has no place in stock Mistral"
        )
    dropped = {*_LLAMA_ONLY, "pretraining_tp", "sliding_window", "model_type", "architectures", "transformers_version"}
    kept = {name: value for name, value in values.items() if name not in dropped}
    return MistralConfig(**kept, sliding_window=None, architectures=["MistralForCausalLM"])


def build_stock(config: PreTrainedConfig, state: dict[str, torch.Tensor], like: PreTrainedModel) -> PreTrainedModel:
    """The stock model of ``config`` that holds exactly the tensors of ``state``; everything else as in ``like``."""
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, attn_implementation=like.config._attn_implementation)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    if like.generation_config is not None:
        model.generation_config = like.generation_config
    return model.train(like.training)
