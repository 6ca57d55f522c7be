from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import zoo
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config
from workbench import Blocks, build_model, planned, random_kept, relative, silence_by_hand, traced, uniform

from passes.errors import UnsupportedModelError
from passes.graph import PruningGraph
from passes.models import twin_of
from passes.shrink import ShrinkPass, compact_config
from passes.trace import trace

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
IDS = Blocks(2, length=100).ids

CASES: list[tuple[str, dict[str, object], int, str]] = [
    ("llama", {}, 2, "llama"),
    ("llama", {}, 3, "mistral"),
    ("llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3}, 3, "mistral"),
    ("llama", {"rope_parameters": LLAMA3, "dtype": "bfloat16"}, 1, "llama"),
    ("llama", {"attention_bias": True, "mlp_bias": True}, 2, "llama"),
    ("mistral", {"sliding_window": 7}, 3, "mistral"),
    ("qwen2", {"tie_word_embeddings": False}, 3, "qwen2"),
    ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, 3, "qwen3"),
]


@pytest.mark.parametrize(("family", "changes", "groups", "saved_as"), CASES)
@torch.no_grad()
def test_the_saved_model_loads_with_stock_transformers_bit_equal(
    tmp_path: Path, family: str, changes: dict, groups: int, saved_as: str
) -> None:
    dtype = getattr(torch, changes.get("dtype", "float32"))
    program = traced(build_model(family, **changes).to(dtype))
    kept = random_kept(program.traced, groups, 24, seed=groups)
    silenced = silence_by_hand(program.model, kept)
    shrunk = ShrinkPass()(planned(program, kept)).program.model
    shrunk.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(IDS).logits, shrunk(IDS).logits)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert relative(loaded(IDS).logits, silenced(IDS).logits) < (1e-5 if dtype == torch.float32 else 0.2)
    check_config(tmp_path, saved_as, loaded)


def check_config(folder: Path, saved_as: str, loaded: PreTrainedModel) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == saved_as
    assert config["architectures"] == [type(loaded).__name__]
    assert config["head_dim"] == 8
    assert "auto_map" not in config
    assert (folder / "generation_config.json").is_file()
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (256, 256, 256)
    assert config["max_position_embeddings"] == 128


@torch.no_grad()
def test_long_rope_scaling_is_carried_over_to_mistral() -> None:
    program = traced(build_model("llama", rope_parameters=LLAMA3))
    shrunk = ShrinkPass()(planned(program, random_kept(program.traced, 3, 24, seed=0))).program.model
    assert type(shrunk).__name__ == "MistralForCausalLM"
    assert shrunk.config.sliding_window is None
    assert {name: shrunk.config.rope_parameters[name] for name in LLAMA3} == LLAMA3
    reference = build_model("llama", rope_parameters=LLAMA3).model.rotary_emb
    assert torch.equal(shrunk.model.rotary_emb.inv_freq, reference.inv_freq)


@lru_cache
def llama_graph(**changes: object) -> PruningGraph:
    return trace(build_model("llama", **changes).config)


def test_stray_entries_of_a_llama_configuration_do_not_reach_mistral() -> None:
    config = LlamaConfig(**{**build_model("llama").config.to_dict(), "sliding_window": 4, "pretraining_tp": 2})
    compact = compact_config(config, llama_graph(), uniform(3, 24))
    assert compact.model_type == "mistral"
    assert compact.sliding_window is None


def test_a_llama_with_biases_is_restricted_to_counts_that_llama_loads() -> None:
    sizes = {"num_attention_heads": 16, "num_key_value_heads": 8, "hidden_size": 48}
    assert llama_graph(**sizes).width("kv_groups").counts == tuple(range(1, 9))
    for bias in ("attention_bias", "mlp_bias"):
        config = build_model("llama", **sizes, **{bias: True}).config
        graph = trace(config)
        assert graph.width("kv_groups").counts == (1, 2, 3, 4, 6, 8)
        for groups in (1, 2, 3, 4, 6, 8):
            smaller = AutoModelForCausalLM.from_config(compact_config(config, graph, uniform(groups, 8)))
            assert smaller.model.layers[0].self_attn.k_proj.out_features == 8 * groups


def test_a_count_that_llama_with_biases_cannot_load_is_refused() -> None:
    config = build_model("llama", attention_bias=True).config
    with pytest.raises(UnsupportedModelError, match=r"6 heads do not divide the hidden size 32.*attention_bias=True"):
        compact_config(config, llama_graph(attention_bias=True), uniform(3, 24))


@torch.no_grad()
def test_the_head_width_is_written_although_the_source_derives_it(tmp_path: Path) -> None:
    values = {k: v for k, v in build_model("qwen2", hidden_size=64).config.to_dict().items() if k != "head_dim"}
    model = AutoModelForCausalLM.from_config(Qwen2Config(**values)).eval()
    assert getattr(model.config, "head_dim", None) is None
    program = traced(model)
    kept = random_kept(program.traced, 3, 24, seed=0)
    silenced = silence_by_hand(model, kept)
    shrunk = ShrinkPass()(planned(program, kept)).program.model
    shrunk.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["head_dim"] == 8
    assert relative(AutoModelForCausalLM.from_pretrained(tmp_path).eval()(IDS).logits, silenced(IDS).logits) < 1e-5


def test_the_source_configuration_is_left_alone() -> None:
    config = build_model("llama").config
    before = config.to_dict()
    compact_config(config, llama_graph(), uniform(2, 24))
    twin_of(LlamaForCausalLM, config)
    assert config.to_dict() == before


def test_a_width_that_is_not_named_stays_dense() -> None:
    config = build_model("llama").config
    compact = compact_config(config, llama_graph(), {"mlp_channels": 24})
    sizes = (compact.num_attention_heads, compact.num_key_value_heads, compact.head_dim, compact.intermediate_size)
    assert sizes == (8, 4, 8, 24)


def test_entries_are_written_under_the_name_that_the_family_stores() -> None:
    """GPT-2 stores n_inner, DistilBERT hidden_dim, Falcon its own ffn_hidden_size."""
    for name, entry in (("gpt2", "n_inner"), ("distilbert", "hidden_dim"), ("falcon-grouped", "ffn_hidden_size")):
        case = zoo.ZOO[name]
        graph = trace(case.config(), model_type=case.model_class)
        compact = compact_config(case.config(), graph, {"mlp_channels": 24})
        assert compact.to_dict()[entry] == 24


def test_the_twin_has_the_names_and_shapes_and_no_memory() -> None:
    model = build_model("llama")
    twin = twin_of(LlamaForCausalLM, model.config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert {name: parameter.shape for name, parameter in twin.named_parameters()} == shapes
    assert {parameter.device.type for parameter in twin.parameters()} == {"meta"}
