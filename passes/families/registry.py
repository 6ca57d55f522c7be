"""The supported families: a few lines of data each, on top of the attention layouts.

What a layout does not say is discovered: MLP channels and the residual stream by torch-pruning, experts by their shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from passes.errors import OptionError, UnsupportedModelError
from passes.families.attention import AttentionBlock, AttentionLayout, Packing

NO_PLACE = "the stock class derives the size of a head from hidden size / heads, so it cannot hold fewer heads"


@dataclass(frozen=True)
class Family:
    """One supported ``model_type``.

    ``attentions``: the kinds of attention blocks it has. ``heads``, ``kv_heads``, ``head_dim`` and ``channels`` are the
    configuration's entries that a stock class builds its sizes from, None where it has none: then a compact model of
    other sizes needs a modelling file (``passes.shrink``). ``{stack}`` in a name is encoder or decoder. ``experts`` and
    ``expert_channels`` likewise. ``epsilon`` is the entry that RMS norms build theirs from. ``refused`` maps
    configuration entries to values that are not supported.
    """

    attentions: tuple[AttentionLayout, ...] = (AttentionLayout(),)
    heads: str | None = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    channels: str | None = "intermediate_size"
    channels_width: str = "mlp_channels"
    experts: str | None = None
    expert_channels: str | None = None
    epsilon: str = "rms_norm_eps"
    refused: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def why_fixed_heads(self) -> str | None:
        """Why no stock class of the family holds another number of heads, or None."""
        return NO_PLACE if self.head_dim is None else None


def _one(**changes: Any) -> tuple[AttentionLayout, ...]:
    return (AttentionLayout(**changes),)


_DERIVED: dict[str, Any] = {"head_dim": None, "kv_heads": None}
"""Entries of families whose stock class derives the head size."""

_BERT = Family(
    _one(
        block="attention.self",
        projections=("query", "key", "value"),
        output=".output.dense",
        head_dim="attention_head_size",
    ),
    **_DERIVED,
)
_VIT = Family(_one(block="attention"), kv_heads=None)
_QK_NORM = Family(_one(shared=("q_norm", "k_norm")))
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

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "gemma", "gemma2", "granite", "smollm3"), Family()),
    **dict.fromkeys(("qwen3", "gemma3_text"), _QK_NORM),
    "olmo2": Family(_one(whole_query_norm="q_norm", whole_key_norm="k_norm")),
    "cohere": Family(_one(query_norms=("q_norm",), key_norms=("k_norm",))),
    "stablelm": Family(
        _one(attributes={"num_heads": "heads", "num_key_value_heads": "groups"}),
        head_dim=None,
        refused={"qk_layernorm": True},
    ),
    "starcoder2": Family(),
    "phi": Family(_one(output="dense", shared=("q_layernorm", "k_layernorm"))),
    "opt": Family(_one(output="out_proj", attributes={"num_heads": "heads"}), channels="ffn_dim", **_DERIVED),
    "gptj": Family(
        _one(block="attn", output="out_proj", attributes={"num_attention_heads": "heads"}),
        channels="n_inner",
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
        **_DERIVED,
    ),
    "phi3": Family(_one(projections=("qkv_proj",), packing=Packing.PARTS)),
    "gpt_neox": Family(
        _one(
            block="attention",
            projections=("query_key_value",),
            output="dense",
            packing=Packing.GROUPS,
            head_dim="head_size",
        ),
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
        **_DERIVED,
    ),
    "mixtral": Family(channels=None, experts="num_local_experts", expert_channels="intermediate_size"),
    "qwen3_moe": Family(_QK_NORM.attentions, experts="num_experts", expert_channels="moe_intermediate_size"),
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
        **_DERIVED,
    ),
    "modernbert": Family(_one(block="attn", projections=("Wqkv",), output="Wo", packing=Packing.PARTS), **_DERIVED),
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
    ),
    "bart": Family(
        (AttentionLayout(**_BART_NAMES), AttentionLayout(block="encoder_attn", cross=True, **_BART_NAMES)),
        heads="{stack}_attention_heads",
        channels="{stack}_ffn_dim",
        channels_width="{stack}.mlp_channels",
        **_DERIVED,
    ),
}


def attention_blocks(model: nn.Module, family: Family) -> Iterator[AttentionBlock]:
    """The attention blocks of a dense model, measured. Raises UnsupportedModelError if one is not as described."""
    for path, _ in model.named_modules():
        for layout in family.attentions:
            if layout.matches(path):
                yield layout.read(model, path)


def register_attention(model_type: str, family: Family) -> None:
    """Describe a model type of your own, so that lpc can trace, mask and shrink it.

    Raises OptionError if the type is described already.
    """
    if model_type in FAMILIES:
        raise OptionError(f"the model type {model_type!r} is described already; give yours another name")
    FAMILIES[model_type] = family


def family_of(config: Any) -> Family:
    """The family of a model's configuration. Raises UnsupportedModelError, with the reason, when there is none."""
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model type {model_type!r} is not supported: its attention layout is not described. "
            f"Supported: {', '.join(sorted(FAMILIES))}; describe your own with lpc.register_attention"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError("the model is quantised; lpc prunes dense weights: load it without quantisation")
    if any("skip" in values for values in (config.to_dict().get("per_layer_config") or {}).values()):
        raise UnsupportedModelError("its per_layer_config skips parts of layers, but transformers builds them whole")
    family = FAMILIES[model_type]
    for name, value in family.refused.items():
        if getattr(config, name, None) == value:
            raise UnsupportedModelError(
                f"{model_type} with {name}={value!r} is not supported: what it adds to attention is not described"
            )
    return family
