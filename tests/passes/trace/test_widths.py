from __future__ import annotations

from collections.abc import Mapping

import pytest
import zoo
from shrinking import graph_of
from transformers import BertConfig, BertForMaskedLM, Gemma2Config, PhiForCausalLM

from passes.families.family import NO_PLACE
from passes.models import stock_class, twin_of
from passes.options import TraceOptions
from passes.shrink import compact_config
from passes.trace import trace

DERIVED = [
    "stablelm",
    "opt",
    "gptj",
    "gpt2",
    "gpt_neox",
    "bloom",
    "falcon-grouped",
    "bert",
    "roberta",
    "distilbert",
    "modernbert",
]


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_count_of_a_stock_class_builds_the_shapes_that_the_graph_predicts(name: str) -> None:
    """Not only the smallest count, which the trace itself builds: the first, the second and the last but one."""
    graph, case = graph_of(name), zoo.ZOO[name]
    for width in graph.widths:
        assert width.counts == width.stock
        assert width.counts[-1] == width.size
        for count in {*width.counts[:2], *width.counts[-2:]}:
            config = compact_config(case.config(), graph, {width.name: count})
            twin = twin_of(stock_class(case.model_class, config), config)
            shapes = {key: tuple(parameter.shape) for key, parameter in twin.named_parameters()}
            kept = graph.uniform({width.name: count})
            assert shapes == {key: graph.shape(key, kept) for key in graph.shapes}


@pytest.mark.parametrize("name", DERIVED)
def test_heads_stay_where_the_stock_class_derives_their_size(name: str) -> None:
    width = graph_of(name).width("kv_groups")
    assert width.counts == (width.size,)
    assert graph_of(name).untouched["kv_groups"] == NO_PLACE
    own = graph_of(name, custom_code=True)
    assert own.width("kv_groups").counts == tuple(range(1, width.size + 1))
    assert own.width("kv_groups").stock == (width.size,)
    assert "kv_groups" not in own.untouched


def test_channels_stay_where_no_entry_says_their_number() -> None:
    assert graph_of("bloom").untouched["mlp_channels"] == "no entry of BloomConfig says how many mlp_channels there are"
    assert graph_of("bloom", custom_code=True).width("mlp_channels").counts == tuple(range(1, 129))


def test_a_configuration_that_refuses_a_number_of_heads_is_not_given_it() -> None:
    """Gemma 2 wants the hidden size to be a multiple of the number of query heads, 2 a group here."""
    with pytest.raises(Exception, match="multiple of the number of attention heads"):
        Gemma2Config(**{**zoo.WIDE, "num_attention_heads": 6, "num_key_value_heads": 3})
    assert graph_of("gemma2").width("kv_groups").counts == (1, 2, 4)
    assert graph_of("gemma2", custom_code=True).width("kv_groups").counts == (1, 2, 3, 4)
    assert graph_of("gemma2", custom_code=True).width("kv_groups").stock == (1, 2, 4)


def test_a_stock_class_with_other_shapes_than_predicted_is_not_used_and_the_reason_names_the_parameter() -> None:
    """Phi sizes its norms over a head by hidden size / heads, whatever its head_dim."""
    reason = graph_of("phi-qk-layernorm").untouched["kv_groups"]
    assert reason.startswith("with 1 kv_groups the stock class makes model.layers.0.self_attn.k_layernorm.bias (16,)")
    smaller = PhiForCausalLM(
        zoo.ZOO["phi-qk-layernorm"].config(num_attention_heads=2, num_key_value_heads=1, head_dim=4)
    )
    assert smaller.model.layers[0].self_attn.k_layernorm.bias.shape == (16,)
    assert graph_of("phi-qk-layernorm").width("kv_groups").counts == (4,)


@pytest.mark.parametrize("name", ["llama", "falcon-grouped", "t5"])
def test_a_single_unit_has_to_stay(name: str) -> None:
    entry, changes = {
        "llama": ("kv_groups", {"num_attention_heads": 1, "num_key_value_heads": 1}),
        "falcon-grouped": ("kv_groups", {"num_attention_heads": 1, "num_kv_heads": 1}),
        "t5": ("kv_groups", {"num_heads": 1}),
    }[name]
    graph = graph_of(name, **changes)
    assert graph.width(entry).counts == (1,)
    assert graph.untouched[entry] == "there is only one, which has to stay"


@pytest.mark.parametrize(
    ("name", "query_heads", "entries"),
    [
        (
            "llama",
            False,
            {
                "kv_groups": {"num_attention_heads": 2, "num_key_value_heads": 1},
                "mlp_channels": {"intermediate_size": 1},
            },
        ),
        ("llama", True, {"query_heads": {"num_attention_heads": 4}, "mlp_channels": {"intermediate_size": 1}}),
        ("vit", False, {"kv_groups": {"num_attention_heads": 1}, "mlp_channels": {"intermediate_size": 1}}),
        ("t5", False, {"kv_groups": {"num_heads": 1}, "mlp_channels": {"d_ff": 1}}),
        (
            "mixtral",
            False,
            {
                "kv_groups": {"num_attention_heads": 2, "num_key_value_heads": 1},
                "experts": {"num_local_experts": 1},
                "expert_channels": {"intermediate_size": 1},
            },
        ),
        (
            "bart",
            False,
            {
                "encoder.kv_groups": {"encoder_attention_heads": 1},
                "decoder.kv_groups": {"decoder_attention_heads": 1},
                "encoder.mlp_channels": {"encoder_ffn_dim": 1},
                "decoder.mlp_channels": {"decoder_ffn_dim": 1},
            },
        ),
    ],
)
def test_widths_know_the_entries_that_say_them(
    name: str, query_heads: bool, entries: Mapping[str, Mapping[str, int]]
) -> None:
    graph = graph_of(name, query_heads=query_heads)
    assert {width.name: dict(width.entries) for width in graph.widths} == entries


@pytest.mark.parametrize(("name", "fixed"), [("llama", {"head_dim": 8}), ("t5", {"d_kv": 8}), ("gpt2", {})])
def test_the_size_of_a_head_is_stated_where_the_family_has_an_entry_for_it(name: str, fixed: dict[str, int]) -> None:
    assert graph_of(name).fixed_entries == fixed


def test_a_stock_class_is_asked_in_its_own_words() -> None:
    """BERT refuses a hidden size that is no multiple of the heads; so do its heads stay, whatever entry there is."""
    with pytest.raises(ValueError, match="not a multiple of the number of attention heads"):
        BertForMaskedLM(BertConfig(**{**zoo.MHA, "num_attention_heads": 7}))
    graph = trace(zoo.ZOO["bert"].config(), model_type=BertForMaskedLM, options=TraceOptions())
    assert graph.width("kv_groups").stock == (8,)
