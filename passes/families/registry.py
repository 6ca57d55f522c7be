"""The supported families: a few lines of data each, on top of the attention layouts.

What a layout does not say is discovered: MLP channels and the residual stream by torch-pruning, experts by their shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from passes.errors import OptionError, UnsupportedModelError
from passes.families.attention import AttentionBlock, AttentionLayout, Packing
from passes.families.family import Family, HeadDim, Served
from passes.registry import Registry


def _one(**changes: Any) -> tuple[AttentionLayout, ...]:
    return (AttentionLayout(**changes),)


_DERIVED: dict[str, Any] = {"head_dim": None, "kv_heads": None}
"""Entries of families whose stock class derives the head size."""

_HAS, _READS, _DERIVES = Served(), Served(HeadDim.READ), Served(HeadDim.DERIVED)
_THROUGH = Served(HeadDim.READ, own=False)
"""Run by vLLM's Transformers backend, which builds transformers' own class."""

_T5_NAMES: dict[str, Any] = {
    "projections": ("q", "k", "v"),
    "output": "o",
    "head_dim": "key_value_proj_dim",
    "attributes": {"n_heads": "heads", "inner_dim": "width"},
}
_BART_NAMES: dict[str, Any] = {
    "output": "out_proj",
    "attributes": {"num_heads": "heads"},
    "width": "{stack}.{kind}",
}
_BLOOM_ATTRIBUTES = {"num_heads": "heads", "split_size": "width"}
_QK_NORM = _one(shared=("q_norm", "k_norm"))
_SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping", "hidden_activation", "query_pre_attn_scalar")

_BERT = Family(
    _one(
        block="attention.self",
        projections=("query", "key", "value"),
        output=".output.dense",
        head_dim="attention_head_size",
    ),
    meaningful=("layer_norm_eps",),
    **_DERIVED,
)
_VIT = Family(_one(block="attention"), kv_heads=None, meaningful=("layer_norm_eps",))

_DECODERS = {
    "llama": Family(onnx_builder=True, genai="llama", llama_cpp=_READS, vllm=_READS),
    "mistral": Family(onnx_builder=True, window="sliding_window", genai="mistral", llama_cpp=_READS, vllm=_READS),
    "qwen2": Family(onnx_builder=True, genai="qwen2", llama_cpp=_DERIVES, vllm=_DERIVES),
    "qwen3": Family(_QK_NORM, onnx_builder=True, genai="qwen3", llama_cpp=_READS, vllm=_READS),
    "gemma": Family(genai="gemma", llama_cpp=_READS, vllm=_READS),
    "gemma2": Family(meaningful=_SOFTCAPS, genai="gemma2", llama_cpp=_READS, vllm=_READS),
    "gemma3_text": Family(_QK_NORM, meaningful=_SOFTCAPS, llama_cpp=_HAS, vllm=_READS),
    "granite": Family(
        meaningful=("attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"),
        genai="granite",
        llama_cpp=_READS,
        vllm=_READS,
    ),
    "smollm3": Family(meaningful=("no_rope_layers",), genai="smollm3", llama_cpp=_HAS, vllm=_THROUGH),
    "olmo2": Family(_one(whole_query_norm="q_norm", whole_key_norm="k_norm"), llama_cpp=_DERIVES, vllm=_THROUGH),
    "cohere": Family(
        _one(query_norms=("q_norm",), key_norms=("k_norm",)),
        meaningful=("layer_norm_eps", "logit_scale"),
        llama_cpp=_HAS,
        vllm=_DERIVES,
    ),
    "stablelm": Family(
        _one(attributes={"num_heads": "heads", "num_key_value_heads": "groups"}),
        head_dim=None,
        refused={"qk_layernorm": True},
        meaningful=("layer_norm_eps", "partial_rotary_factor", "use_parallel_residual"),
        llama_cpp=_HAS,
        vllm=_HAS,
    ),
    "starcoder2": Family(llama_cpp=_DERIVES, vllm=_THROUGH),
    "phi": Family(
        _one(output="dense", shared=("q_layernorm", "k_layernorm")),
        meaningful=("layer_norm_eps", "partial_rotary_factor"),
        genai="phi",
        llama_cpp=_HAS,
        vllm=_DERIVES,
    ),
    "opt": Family(
        _one(output="out_proj", attributes={"num_heads": "heads"}),
        channels="ffn_dim",
        meaningful=("activation_function", "do_layer_norm_before"),
        vllm=_HAS,
        **_DERIVED,
    ),
    "gptj": Family(
        _one(block="attn", output="out_proj", attributes={"num_attention_heads": "heads"}),
        channels="n_inner",
        meaningful=("activation_function", "layer_norm_epsilon", "rotary_dim"),
        vllm=_HAS,
        **_DERIVED,
    ),
    "gpt2": Family(
        _one(
            block="attn",
            projections=("c_attn",),
            output="c_proj",
            packing=Packing.PARTS,
            attributes={"num_heads": "heads", "split_size": "width"},
        ),
        channels="n_inner",
        meaningful=(
            "activation_function",
            "layer_norm_epsilon",
            "scale_attn_by_inverse_layer_idx",
            "scale_attn_weights",
        ),
        llama_cpp=_HAS,
        vllm=_HAS,
        **_DERIVED,
    ),
    "phi3": Family(
        _one(
            projections=("qkv_proj",),
            packing=Packing.PARTS,
            attributes={"config.num_attention_heads": "heads", "num_key_value_heads": "groups"},
        ),
        meaningful=("partial_rotary_factor",),
        genai="phi3",
        llama_cpp=_DERIVES,
        vllm=_READS,
    ),
    "gpt_neox": Family(
        _one(
            block="attention",
            projections=("query_key_value",),
            output="dense",
            packing=Packing.GROUPS,
            head_dim="head_size",
        ),
        meaningful=("layer_norm_eps", "rotary_pct", "use_parallel_residual"),
        llama_cpp=_HAS,
        vllm=_HAS,
        **_DERIVED,
    ),
    "bloom": Family(
        _one(
            block="self_attention",
            projections=("query_key_value",),
            output="dense",
            packing=Packing.GROUPS,
            head_inputs=("alibi",),
            attributes=_BLOOM_ATTRIBUTES,
        ),
        channels=None,
        meaningful=("apply_residual_connection_post_layernorm", "layer_norm_epsilon"),
        endless=True,
        llama_cpp=_HAS,
        vllm=_HAS,
        **_DERIVED,
    ),
    "falcon": Family(
        _one(
            block="self_attention",
            projections=("query_key_value",),
            output="dense",
            packing=Packing.GROUPS,
            head_inputs=("alibi", "attention_mask"),
            attributes={**_BLOOM_ATTRIBUTES, "num_kv_heads": "groups"},
            expands="new_decoder_architecture",
        ),
        channels="ffn_hidden_size",
        meaningful=(
            "activation",
            "alibi",
            "layer_norm_epsilon",
            "multi_query",
            "new_decoder_architecture",
            "parallel_attn",
        ),
        llama_cpp=_HAS,
        vllm=_HAS,
        **_DERIVED,
    ),
    "mixtral": Family(
        channels=None,
        experts="num_local_experts",
        expert_channels="intermediate_size",
        meaningful=("num_experts_per_tok",),
        llama_cpp=_READS,
        vllm=_READS,
    ),
    "qwen3_moe": Family(
        _QK_NORM,
        experts="num_experts",
        expert_channels="moe_intermediate_size",
        meaningful=("norm_topk_prob", "num_experts_per_tok"),
        llama_cpp=_HAS,
        vllm=_READS,
    ),
}

_OTHERS = {
    **dict.fromkeys(("bert", "roberta"), _BERT),
    "distilbert": Family(
        _one(
            block="attention",
            projections=("q_lin", "k_lin", "v_lin"),
            output="out_lin",
            head_dim="attention_head_size",
            attributes={"n_heads": "heads"},
        ),
        channels="hidden_dim",
        meaningful=("activation",),
        **_DERIVED,
    ),
    "modernbert": Family(
        _one(block="attn", projections=("Wqkv",), output="Wo", packing=Packing.PARTS),
        meaningful=("global_attn_every_n_layers", "hidden_activation", "local_attention", "norm_eps"),
        **_DERIVED,
    ),
    **dict.fromkeys(("vit", "deit"), _VIT),
    "t5": Family(
        (
            AttentionLayout(block="SelfAttention", bias_table="relative_attention_bias", **_T5_NAMES),
            AttentionLayout(block="EncDecAttention", cross=True, passes_on="position_bias", **_T5_NAMES),
        ),
        heads="num_heads",
        kv_heads=None,
        head_dim="d_kv",
        channels="d_ff",
        meaningful=(
            "feed_forward_proj",
            "layer_norm_epsilon",
            "relative_attention_max_distance",
            "relative_attention_num_buckets",
            "scale_decoder_outputs",
        ),
    ),
    "bart": Family(
        (AttentionLayout(**_BART_NAMES), AttentionLayout(block="encoder_attn", cross=True, **_BART_NAMES)),
        heads="{stack}_attention_heads",
        channels="{stack}_ffn_dim",
        channels_width="{stack}.mlp_channels",
        meaningful=("activation_function", "scale_embedding"),
        **_DERIVED,
    ),
}

FAMILIES = Registry("model type", Family, "lpc.families")
"""All families by model type; grows with ``register_attention``, and by packages' entry points ``lpc.families``."""

for _model_type, _family in {**_DECODERS, **_OTHERS}.items():
    FAMILIES.add(_model_type, _family)


def attention_blocks(model: nn.Module, family: Family) -> Iterator[AttentionBlock]:
    """The attention blocks of a dense model, measured. Raises UnsupportedModelError if one is not as described."""
    for path, _ in model.named_modules():
        for layout in family.attentions:
            if layout.matches(path) and not family.is_fixed(path):
                yield layout.read(model, path)


def fixed_blocks(model: nn.Module, family: Family) -> list[str]:
    """The paths of the blocks of a model that stay as they are, none inside of another."""
    found = [path for path, _ in model.named_modules() if family.is_fixed(path)]
    return [path for path in found if not any(path.startswith(f"{other}.") for other in found)]


def register_attention(model_type: str, family: Family) -> None:
    """Describe a model type of your own, so that lpc can trace, mask and shrink it.

    Raises OptionError if the type is described already.
    """
    if model_type in FAMILIES:
        raise OptionError(f"the model type {model_type!r} is described already; give yours another name")
    FAMILIES.add(model_type, family)


_DISCOVERED: dict[str, Family] = {}


def family_named(model_type: str) -> Family | None:
    """The family of a model type: one that was described, or that was discovered in this process; None if neither."""
    return FAMILIES.get(model_type) or _DISCOVERED.get(model_type)


def remember(model_type: str, family: Family) -> None:
    """Use a discovered family for a model type that nobody described, in place of an earlier one."""
    _DISCOVERED[model_type] = family


@contextmanager
def tried(model_type: str, family: Family) -> Iterator[None]:
    """A family is that of a model type inside the block, for finding out whether it is right."""
    before = _DISCOVERED.get(model_type)
    _DISCOVERED[model_type] = family
    try:
        yield
    finally:
        if before is None:
            del _DISCOVERED[model_type]
        else:
            _DISCOVERED[model_type] = before


READABLE = ("bitsandbytes", "QuantizationMethod.BITS_AND_BYTES")
"""Ways of packing weights that can be unpacked where they are looked at; by what the configuration calls them."""


def check_dense(config: Any) -> None:
    """Raise UnsupportedModelError for packed weights that cannot be unpacked, and for layers that skip a part."""
    packing: Any = getattr(config, "quantization_config", None)
    method = packing.get("quant_method", "") if isinstance(packing, dict) else getattr(packing, "quant_method", "")
    if packing is not None and str(method) not in READABLE:
        raise UnsupportedModelError(
            f"the model is quantised ({method or 'quantization_config says not how'}); lpc prunes dense weights, and "
            "of packed ones those of bitsandbytes: load it without quantisation, or with BitsAndBytesConfig"
        )
    if any("skip" in values for values in (config.to_dict().get("per_layer_config") or {}).values()):
        raise UnsupportedModelError("its per_layer_config skips parts of layers, but transformers builds them whole")


def family_of(config: Any) -> Family:
    """The family of a model's configuration. Raises UnsupportedModelError, with the reason, when there is none.

    One that nobody described is known once it was discovered (``passes.discovery``).
    """
    model_type = str(getattr(config, "model_type", None))
    family = family_named(model_type)
    if family is None:
        raise UnsupportedModelError(
            f"model type {model_type!r} is not supported: its attention layout is not described. "
            f"Supported: {', '.join(sorted(FAMILIES))}; describe your own with lpc.register_attention"
        )
    check_dense(config)
    for name, value in family.refused.items():
        if getattr(config, name, None) == value:
            raise UnsupportedModelError(
                f"{model_type} with {name}={value!r} is not supported: what it adds to attention is not described"
            )
    return family
