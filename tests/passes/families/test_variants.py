"""What the entries of a configuration change in a family, one or two at a time: masked and compact stay equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from shrinking import counted, masked_outputs, outputs
from workbench import random_units, relative

from passes.errors import UnsupportedModelError
from passes.graph import Kind
from passes.models import count_parameters
from passes.options import TraceOptions
from passes.shrink import build_compact
from passes.trace import trace

MHA, MQA = {"num_key_value_heads": 8}, {"num_key_value_heads": 1}

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", MHA),
    ("llama", MQA),
    ("llama", {"head_dim": 16, "tie_word_embeddings": True}),
    ("llama", {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48}),
    ("llama", {"num_attention_heads": 1, "num_key_value_heads": 1}),
    ("mistral", {"sliding_window": None, **MQA}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True, **MHA}),
    ("gemma", MQA),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": 5.0, "head_dim": 16}),
    ("gemma3_text", {"attention_bias": True, **MQA}),
    ("gemma3_text", {"use_bidirectional_attention": True}),
    ("olmo2", {"attention_bias": True}),
    ("olmo2", {"head_dim": 8}),
    ("olmo2", MHA),
    ("granite", {"attention_bias": True, "mlp_bias": True, "head_dim": 8}),
    ("smollm3", {"attention_bias": True, "mlp_bias": True, "no_rope_layers": [0, 0]}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 5}),
    ("cohere", {"attention_bias": True, "head_dim": 8}),
    ("cohere-qk-norm", MHA),
    ("cohere-qk-norm", MQA),
    ("stablelm", MHA),
    ("stablelm", MQA),
    ("starcoder2", {"use_bias": False, "sliding_window": 5}),
    ("starcoder2", {"head_dim": 8}),
    ("phi", MHA),
    ("opt", {"word_embed_proj_dim": 16}),
    ("opt", {"enable_bias": False}),
    ("opt", {"layer_norm_elementwise_affine": False}),
    ("opt-post-norm", {"word_embed_proj_dim": 16}),
    ("gptj", {"n_inner": None}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    ("gpt2", {"n_inner": None, "tie_word_embeddings": False}),
    ("phi3", {"partial_rotary_factor": 0.5, "sliding_window": 5}),
    ("phi3", MHA),
    ("phi3", MQA),
    ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    ("bloom", {"apply_residual_connection_post_layernorm": True, "n_head": 4}),
    ("falcon-mqa", {"bias": True, "parallel_attn": False}),
    ("falcon-mqa", {"alibi": True}),
    ("falcon-grouped", {"num_ln_in_parallel_attn": 1, "bias": True}),
    ("falcon-grouped", {"num_kv_heads": 1, "alibi": True}),
    ("falcon-grouped", {"num_kv_heads": 8}),
    ("falcon-mha-alibi", {"alibi": False, "parallel_attn": True}),
    ("mixtral", {"num_experts_per_tok": 1, "sliding_window": 5, **MHA}),
    ("mixtral", {"num_experts_per_tok": 4}),
    ("qwen3_moe", {"norm_topk_prob": False, "attention_bias": True}),
    ("qwen3_moe", {"decoder_sparse_step": 2}),
    ("qwen3_moe", {"mlp_only_layers": [0, 1]}),
    ("bert", {"chunk_size_feed_forward": 4, "hidden_act": "relu"}),
    ("bert", {"tie_word_embeddings": False}),
    ("distilbert", {"sinusoidal_pos_embds": True, "activation": "relu"}),
    ("modernbert", {"attention_bias": True, "mlp_bias": True, "norm_bias": True}),
    ("vit", {"qkv_bias": False}),
    ("t5", {"num_decoder_layers": 3, "d_kv": 4}),
    ("t5", {"scale_decoder_outputs": True, "num_layers": 1}),
    ("bart", {"encoder_attention_heads": 4}),
    ("bart", {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_layers": 1}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=str)
@pytest.mark.parametrize("custom_code", [False, True], ids=["stock", "own"])
def test_compact_equals_masked(name: str, changes: dict[str, Any], custom_code: bool) -> None:
    model = zoo.build(name, **changes)
    graph = trace(model.config, model_type=type(model), options=TraceOptions(custom_code=custom_code))
    counts = {width.name: width.counts[int(0.4 * len(width.counts))] for width in graph.widths}
    kept = random_units(graph, counts, seed=len(name))
    expected = masked_outputs(model, graph, kept, name)
    compact = build_compact(model, graph, kept)
    assert relative(outputs(compact, name), expected) < 1e-5
    assert count_parameters(compact) == graph.parameters(counted(kept))
    removed = graph.parameters(counted(kept)) < graph.parameters()
    assert removed or (name == "bloom" and not custom_code)
    assert not removed or relative(outputs(model, name), expected) > 1e-2


@pytest.mark.parametrize(
    ("name", "changes", "kind"),
    [
        ("llama", MHA, Kind.KV_GROUPS),
        ("llama", MQA, Kind.QUERY_HEADS),
        ("stablelm", MQA, Kind.QUERY_HEADS),
        ("falcon-grouped", {"num_kv_heads": 1}, Kind.QUERY_HEADS),
        ("falcon-grouped", {"num_kv_heads": 8}, Kind.KV_GROUPS),
        ("llama", {"num_attention_heads": 1, "num_key_value_heads": 1}, Kind.KV_GROUPS),
    ],
)
def test_the_last_kv_head_is_never_a_unit(name: str, changes: dict[str, Any], kind: Kind) -> None:
    model = zoo.build(name, **changes)
    graph = trace(model.config, model_type=type(model), options=TraceOptions(custom_code=True))
    kinds = {dimension.kind for dimension in graph.dimensions}
    assert kinds == {kind, Kind.MLP_CHANNELS}
    assert (Kind.KV_GROUPS in graph.untouched) is (kind is Kind.QUERY_HEADS)
    if kind is Kind.QUERY_HEADS:
        cut = {part.parameter for d in graph.dimensions for part in d.slices}
        assert not any(".k_proj." in name or ".v_proj." in name for name in cut)


def test_the_key_and_value_of_multi_query_falcon_belong_to_no_unit() -> None:
    """The rows of the fused layer: 8 queries of 4, and then one key and one value of 4."""
    model = zoo.build("falcon-mqa")
    graph = trace(model.config, model_type=type(model), options=TraceOptions(custom_code=True))
    for layer in (0, 1):
        parts = [part for _, part in graph.slices_of[f"transformer.h.{layer}.self_attention.query_key_value.weight"]]
        rows = sorted(row for part in parts for row in part.indices(range(8)))
        assert rows == list(range(32))
    assert model.transformer.h[0].self_attention.query_key_value.weight.shape == (40, 32)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"add_cross_attention": True}, r"transformer\.h\.0\.crossattention\.c_attn\.bias with shape \(64,\)"),
        ("stablelm", {"qk_layernorm": True}, "stablelm with qk_layernorm=True"),
        ("bert", {"is_decoder": True, "add_cross_attention": True}, r"crossattention\.\S+ with shape"),
    ],
)
def test_a_structure_that_is_not_described_is_refused_by_name(name: str, changes: dict[str, Any], message: str) -> None:
    case = zoo.ZOO[name]
    with pytest.raises(UnsupportedModelError, match=message):
        trace(case.config(**changes), torch.float32, model_type=case.model_class)


def test_heads_of_a_t5_stack_are_one_dimension_with_their_bias_table() -> None:
    """All layers add the bias of the first: a head goes in all of them, or in none. Cross-attention has no bias."""
    case = zoo.ZOO["t5"]
    graph = trace(case.config(), model_type=case.model_class)
    names = [dimension.name for dimension in graph.of_kind(Kind.KV_GROUPS)]
    assert sorted(names) == [
        "decoder.kv_groups",
        "decoder.layers.0.cross_kv_groups",
        "decoder.layers.1.cross_kv_groups",
        "encoder.kv_groups",
    ]
    for stack in ("encoder", "decoder"):
        parts = graph.by_name[f"{stack}.kv_groups"].slices
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        assert [(part.axis, part.indices([5])) for part in parts if part.parameter == table] == [(1, [5])]
        blocks = {part.module.split(".")[2] for part in parts}
        assert blocks == {"0", "1"}
        assert len(parts) == 2 * 4 + 1
