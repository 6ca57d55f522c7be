"""Model types that nobody described: found, proven on a twin, kept; or refused with the first check that failed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
import zoo

from passes.discovery import describe, random_model, small_config
from passes.discovery.blocks import blocks_of, fixed_of
from passes.discovery.layouts import attention_kinds
from passes.discovery.proof import prove
from passes.discovery.search import UNPROVEN
from passes.errors import UnsupportedModelError
from passes.families import FAMILIES, AttentionLayout, Family, Packing, family_named, tried
from passes.graph import Kind, Renumbering
from passes.models import twin_of
from passes.options import TraceOptions
from passes.shrink import build_compact
from passes.trace import trace

SIZES = {**zoo.GQA, "num_hidden_layers": 2}


@pytest.fixture
def undescribed() -> Iterator[None]:
    """As if nobody had described any of lpc's own families."""
    with FAMILIES.restored():
        FAMILIES._entries.clear()
        yield


def olmo3() -> hf.Olmo3Config:
    return hf.Olmo3Config(**SIZES, layer_types=["sliding_attention", "full_attention"], sliding_window=6)


@pytest.mark.parametrize(
    "name",
    ["llama", "qwen3", "olmo2", "cohere-qk-norm", "phi-qk-layernorm", "stablelm", "opt", "gptj", "gpt2", "phi3",
     "bert", "distilbert", "modernbert", "vit", "mixtral"],
)  # fmt: skip
def test_the_likeliest_layout_is_the_described_one(name: str) -> None:
    case = zoo.ZOO[name]
    kinds = attention_kinds(twin_of(case.model_class, case.config()), stacks=False)
    described = FAMILIES[case.family].attentions
    assert len(kinds) == len(described) == 1
    found = [replace(each, attributes={}) for each in kinds[0].layouts]
    blank = replace(described[0], attributes={}, block=kinds[0].name)
    if name == "phi-qk-layernorm":
        assert found[0] == blank
    else:
        assert replace(found[0], shared=()) == replace(blank, shared=())
    assert described[0].block.endswith(kinds[0].name)


def test_a_family_that_nobody_described_is_discovered_and_used(tmp_path: Path) -> None:
    family = describe(olmo3(), hf.Olmo3ForCausalLM, cache=tmp_path)
    assert family.proof is not None
    assert family.proof.worst < 5e-5
    assert family.proof.checks == ("masked against cut", "with a cache", "reload")
    assert (family.heads, family.kv_heads, family.channels) == (
        "num_attention_heads", "num_key_value_heads", "intermediate_size",
    )  # fmt: skip
    graph = trace(olmo3(), model_type=hf.Olmo3ForCausalLM)
    assert {w.name: w.stock[0] for w in graph.widths} == {"kv_groups": 1, "mlp_channels": 1}
    assert "sliding_window" in family.meaningful


def test_what_was_discovered_is_read_again_and_a_broken_file_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("passes.discovery.search.IN_PROCESS", {})
    first = describe(olmo3(), hf.Olmo3ForCausalLM, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "heads": "read_from_the_file"}))
    monkeypatch.setattr("passes.discovery.search.IN_PROCESS", {})
    assert describe(olmo3(), hf.Olmo3ForCausalLM, cache=tmp_path) == replace(first, heads="read_from_the_file")
    file.write_text("{")
    monkeypatch.setattr("passes.discovery.search.IN_PROCESS", {})
    with caplog.at_level(logging.WARNING):
        assert describe(olmo3(), hf.Olmo3ForCausalLM, cache=tmp_path) == first
    assert "cannot be read" in caplog.text


def test_a_wrong_layout_is_refused_with_the_check_that_failed(undescribed: None) -> None:
    case = zoo.ZOO["gpt_neox"]
    layout = FAMILIES_OF["gpt_neox"].attentions[0]
    model = random_model(case.model_class, small_config(case.model_class, case.config()))
    wrong = replace(FAMILIES_OF["gpt_neox"], attentions=(replace(layout, packing=Packing.PARTS),))
    with tried("gpt_neox", wrong), pytest.raises(UnsupportedModelError, match="masked against cut"):
        prove(model)
    with tried("gpt_neox", FAMILIES_OF["gpt_neox"]):
        assert prove(model)[0].worst < 5e-5
    assert family_named("gpt_neox") is None


FAMILIES_OF: dict[str, Family] = dict(FAMILIES)


def test_attention_that_fits_no_layout_stays_with_the_reason(tmp_path: Path) -> None:
    config = hf.DiffLlamaConfig(**{**SIZES, "hidden_size": 128})
    family = describe(config, hf.DiffLlamaForCausalLM, cache=tmp_path)
    assert family.attentions == ()
    assert "DiffLlamaAttention fit none of the known attention layouts (it holds lambda_q1" in family.fixed["self_attn"]
    graph = trace(config, model_type=hf.DiffLlamaForCausalLM)
    assert graph.untouched["self_attn"] == family.fixed["self_attn"]
    assert [width.name for width in graph.widths] == ["mlp_channels"]
    assert graph.untouched["KV cache"].startswith("what 2 layers keep of past tokens is not known")


def test_what_cannot_be_proven_is_refused_with_the_reason_and_the_lines_to_describe_it(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"nothing of Mamba.* can go.*lpc\.register_attention\('mamba'"):
        describe(hf.MambaConfig(hidden_size=16, num_hidden_layers=2), hf.MambaForCausalLM, cache=tmp_path)


def test_several_models_in_one_are_refused_by_the_names_of_the_parts(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"several models in one \(.*vision_config"):
        describe(hf.PaliGemmaConfig(), hf.PaliGemmaForConditionalGeneration, cache=tmp_path)


def test_a_small_model_has_each_kind_of_layer_and_the_size_of_the_heads() -> None:
    config = hf.Gemma2Config(num_hidden_layers=26, layer_types=["sliding_attention"] * 3 + ["full_attention"] * 23)
    small = small_config(hf.Gemma2ForCausalLM, config)
    assert small.num_hidden_layers == 4
    assert small.layer_types == ["sliding_attention"] * 3 + ["full_attention"]
    assert (small.num_attention_heads, small.num_key_value_heads, small.head_dim) == (4, 2, 256)
    assert small.vocab_size < 1000


def test_a_small_model_has_few_layers_where_a_kind_is_the_last_one_s_or_runs_several_times() -> None:
    few = small_config(hf.GPTNeoXJapaneseForCausalLM, hf.GPTNeoXJapaneseConfig(hidden_size=64, num_attention_heads=4))
    assert few.num_hidden_layers == 2
    turns = hf.HrmTextConfig(**{**SIZES, "num_hidden_layers": 13}, H_cycles=2, L_cycles=2)
    assert turns.num_hidden_layers == 2 * 3 * 13
    small = small_config(hf.HrmTextForCausalLM, turns)
    assert (small.num_layers_per_stack, small.num_hidden_layers) == (2, 2 * 3 * 2)


def test_parts_of_a_configuration_without_layers_and_type_are_sizes_and_no_models() -> None:
    with pytest.raises(UnsupportedModelError, match=r"dbrx says sizes in parts of its configuration \(ffn_config\)"):
        small_config(hf.DbrxForCausalLM, hf.DbrxConfig())


def test_two_mlps_of_a_layer_go_beside_attention_of_another_name_that_stays(tmp_path: Path) -> None:
    kind = hf.LongcatFlashForCausalLM
    config = hf.LongcatFlashConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_attention_heads=4, ffn_hidden_size=48, q_lora_rank=16,
        kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, head_dim=8, v_head_dim=8, n_routed_experts=4,
        zero_expert_num=2, moe_topk=2, expert_ffn_hidden_size=24,
    )  # fmt: skip
    family = describe(config, kind, cache=tmp_path)
    assert {name: why.partition(" ")[0] for name, why in family.fixed.items()} == {
        "self_attn.0": "LongcatFlashMLA", "self_attn.1": "LongcatFlashMLA", "mlp": "model.layers.1.mlp:",
    }  # fmt: skip
    assert "router's (6, 32) do not fit together" in family.fixed["mlp"]
    names = [dimension.name for dimension in trace(config, model_type=kind).dimensions]
    assert names == [f"layers.{layer}.mlp_channels{end}" for layer in range(2) for end in ("", ".1")]


def test_blocks_beyond_those_of_the_small_model_are_found_or_refused(tmp_path: Path) -> None:
    config = hf.XLMConfig(vocab_size=64, emb_dim=32, n_layers=4, n_heads=4, max_position_embeddings=32)
    family = describe(config, hf.XLMModel, cache=tmp_path)
    assert [layout.block for layout in family.attentions] == ["attentions.*"]
    assert len(trace(config, model_type=hf.XLMModel).dimensions) == 4
    first = replace(family.attentions[0], block="attentions.0")
    with (
        tried("xlm", replace(family, attentions=(first,))),
        pytest.raises(UnsupportedModelError, match=r"attentions\.1 is MultiHeadAttention as attentions\.0 is"),
    ):
        trace(config, model_type=hf.XLMModel)


def test_a_refusal_names_what_stays_before_what_cannot_be_followed_around_it(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hf.IBertConfig(**sizes, intermediate_size=48, max_position_embeddings=40)
    with pytest.raises(UnsupportedModelError, match=r"IBertAttention is no attention.*and with that as it is: .*Type"):
        describe(config, hf.IBertModel, cache=tmp_path)


def glm4_moe(**sizes: int) -> hf.Glm4MoeConfig:
    return hf.Glm4MoeConfig(
        **SIZES, head_dim=8, moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        first_k_dense_replace=1, **sizes,
    )  # fmt: skip


def test_experts_go_with_their_router_s_biases_unless_it_chooses_among_groups(tmp_path: Path) -> None:
    kind = hf.Glm4MoeForCausalLM
    family = describe(glm4_moe(n_group=1), kind, cache=tmp_path)
    assert (family.experts, family.stays) == ("num_local_experts", {})
    graph, model = trace(glm4_moe(n_group=1), model_type=kind), random_model(kind, glm4_moe(n_group=1))
    (experts,) = graph.of_kind(Kind.EXPERTS)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert [part.parameter for part in experts.buffers] == [name]
    kept = {dimension.name: range(dimension.size) for dimension in graph.dimensions} | {experts.name: [0, 3]}
    compact = build_compact(model, graph, kept)
    assert torch.equal(compact.state_dict()[name], model.state_dict()[name][[0, 3]])
    assert model.state_dict()[name].unique().numel() == 4
    (first,) = Renumbering("model.layers", (1,)).dimension(experts).buffers
    assert first.parameter == name.replace("layers.1", "layers.0")
    model.state_dict()[name][0] = -100.0  # no token is sent to the first expert
    assert prove(model)[0].worst < 5e-5
    grouped = trace(glm4_moe(n_group=2, topk_group=1), model_type=kind)
    assert not grouped.of_kind(Kind.EXPERTS)
    assert "groups of them (n_group)" in grouped.untouched["experts"]


@pytest.mark.parametrize("name", ["MPNet", "Albert"])
def test_biases_that_are_handed_in_and_norms_behind_the_output_do_not_hold_heads(name: str, tmp_path: Path) -> None:
    config = getattr(hf, f"{name}Config")(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                          intermediate_size=48)  # fmt: skip
    family = describe(config, getattr(hf, f"{name}Model"), cache=tmp_path)
    (layout,) = family.attentions
    assert (layout.head_inputs, layout.whole) == ((("position_bias",), ()) if name == "MPNet" else ((), ("LayerNorm",)))
    graph = trace(config, model_type=getattr(hf, f"{name}Model"), options=TraceOptions(custom_code=True))
    assert {width.name: width.counts[0] for width in graph.widths} == {"kv_groups": 1, "mlp_channels": 1}
    assert ("counted once" in graph.untouched.get("MACs", "")) is (name == "Albert")


def test_a_model_that_looks_for_global_tokens_is_followed_as_if_there_were_none() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hf.LongformerConfig(**sizes, intermediate_size=48, attention_window=[4, 4], max_position_embeddings=40)
    family = Family((), fixed={"self": "it stays"}, outputs={"LongformerSelfAttention": 1}, proof=UNPROVEN)
    with tried("longformer", family):
        graph = trace(config, model_type=hf.LongformerForMaskedLM)
    assert [each.kind for each in graph.dimensions] == [Kind.MLP_CHANNELS] * 2


def test_blocks_in_lists_are_blocks_of_their_layer() -> None:
    twin = twin_of(zoo.ZOO["t5"].model_class, zoo.ZOO["t5"].config())
    paths = [path for path, _ in blocks_of(twin) if path.startswith("decoder.block.0.")]
    assert paths == [f"decoder.block.0.layer.{number}" for number in range(3)]


def test_an_mlp_in_a_class_that_is_named_after_its_norm_is_no_norm() -> None:
    config = hf.RobertaPreLayerNormConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48, vocab_size=64
    )
    twin = twin_of(hf.RobertaPreLayerNormForMaskedLM, config)
    assert fixed_of(twin, attention_kinds(twin, stacks=False)) == {}


def test_tables_of_biases_are_found_and_passed_on_as_t5_s_are_described() -> None:
    kinds = attention_kinds(twin_of(zoo.ZOO["t5"].model_class, zoo.ZOO["t5"].config()), stacks=False)
    described = {layout.block: layout for layout in FAMILIES_OF["t5"].attentions}
    assert {kind.name for kind in kinds} == described.keys()
    assert all(described[kind.name] in kind.layouts for kind in kinds)


def test_gates_go_with_their_heads() -> None:
    class Gated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head_dim = 4
            self.q_proj, self.o_proj = torch.nn.Linear(16, 32), torch.nn.Linear(16, 16)
            self.k_proj, self.v_proj = torch.nn.Linear(16, 8), torch.nn.Linear(16, 8)
            self.gate_proj = torch.nn.Linear(16, 16)

    model = torch.nn.Sequential()
    model.add_module("attn", Gated())
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([model])})  # type: ignore[assignment]
    (kind,) = attention_kinds(model, stacks=False)
    layout: AttentionLayout = kind.layouts[0]
    assert (layout.gates, layout.gated_query, layout.output) == (("gate_proj",), True, "o_proj")
    slices = {part.parameter.rpartition("attn.")[2]: part.indices([1]) for part in layout.read(
        model, kind.paths[0]).group_slices()}  # fmt: skip
    assert slices["q_proj.weight"] == list(range(16, 32))
    assert slices["gate_proj.weight"] == slices["o_proj.weight"] == list(range(8, 16))
