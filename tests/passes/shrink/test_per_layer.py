"""Layers of different widths, in transformers' own per_layer_config, built by the class of the modelling file."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from typing import Any

import pytest
import torch
import zoo
from shrinking import decoded, dense, graph_of, masked_outputs, outputs
from transformers import LlamaForCausalLM, PreTrainedModel
from uneven import uneven_units
from workbench import relative

from passes.errors import PlanError
from passes.models import compact_class, count_parameters, vendor
from passes.models.resized import OwnConfig
from passes.shrink import build_compact
from passes.shrink.config import check_buildable, per_layer_config, uniform_counts

SAID = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "granite", "smollm3",
    "cohere-qk-norm", "starcoder2", "phi", "phi3", "mixtral", "qwen3_moe", "qwen3_moe-mixed", "opt", "gpt2", "gpt_neox",
    "bert", "vit",
)  # fmt: skip
"""Whose configuration has entries for all that goes without custom code."""

NOT_SAID = ("falcon-grouped", "bloom", "t5", "bart")


@lru_cache
def built(name: str) -> PreTrainedModel:
    graph = graph_of(name, custom_code=name in NOT_SAID)
    return build_compact(dense(name), graph, uneven_units(graph))


@pytest.mark.parametrize("name", [*SAID, *NOT_SAID])
def test_a_model_with_layers_of_different_widths_computes_what_the_masked_one_does(name: str) -> None:
    graph = graph_of(name, custom_code=name in NOT_SAID)
    kept = uneven_units(graph)
    assert uniform_counts(graph, kept) is None
    compact = built(name)
    expected = masked_outputs(dense(name), graph, kept, name)
    assert relative(outputs(compact, name), expected) < 1e-5
    stepwise = decoded(compact, name)
    assert stepwise is None or relative(stepwise, expected) < 1e-5
    assert relative(outputs(dense(name), name), expected) > 1e-2
    assert count_parameters(compact) == graph.parameters({each: len(units) for each, units in kept.items()})


@pytest.mark.parametrize("name", [*SAID, *NOT_SAID])
def test_there_is_one_source_of_truth(name: str) -> None:
    config = built(name).config
    assert config.is_heterogeneous is (name in SAID)
    assert hasattr(config, "compact") is (name in NOT_SAID)
    assert config.architectures == [f"Compact{type(dense(name)).__name__}"]


def test_the_configuration_is_the_dense_one_and_what_differs_a_layer() -> None:
    model = zoo.build("qwen2", num_hidden_layers=11)
    graph = graph_of("qwen2", num_hidden_layers=11)
    kept = {dimension.name: tuple(range(dimension.size)) for dimension in graph.dimensions}
    kept |= {"layers.3.kv_groups": (1, 2, 3), "layers.10.mlp_channels": (7, 9)}
    values = json.loads(build_compact(model, graph, kept).config.to_json_string())
    assert values["per_layer_config"] == {
        "03": {"num_attention_heads": 6, "num_key_value_heads": 3},
        "10": {"intermediate_size": 2},
    }
    assert values["allow_global_per_layer_attribute_access"] is True
    assert values["head_dim"] == 4
    assert values["auto_map"] == {
        "AutoModel": "modeling_compact.CompactQwen2Model",
        "AutoModelForCausalLM": "modeling_compact.CompactQwen2ForCausalLM",
    }
    dense_values = model.config.to_dict()
    same = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "num_hidden_layers", "hidden_size")
    assert {name: values[name] for name in same} == {name: dense_values[name] for name in same}
    again = type(model.config).from_dict(values)
    assert [each.num_key_value_heads for each in again.per_layer_config] == [4, 4, 4, 3, *[4] * 7]


def test_uniform_widths_that_the_stock_class_holds_stay_a_plain_configuration() -> None:
    graph = graph_of("llama")
    kept = {d.name: tuple(range(d.size // 2)) for d in graph.dimensions}
    assert uniform_counts(graph, kept) == {"kv_groups": 2, "mlp_channels": 32}
    compact = build_compact(dense("llama"), graph, kept)
    assert type(compact) is LlamaForCausalLM
    assert not compact.config.is_heterogeneous


def test_query_heads_may_differ_between_layers_but_not_between_the_groups_of_one() -> None:
    graph = graph_of("llama", query_heads=True)
    kept = {d.name: tuple(range(d.size)) for d in graph.dimensions}
    kept |= {f"layers.0.query_heads.{group}": (group % 2,) for group in range(4)}
    compact = build_compact(dense("llama"), graph, kept)
    assert compact.config.to_dict()["per_layer_config"] == {"0": {"num_attention_heads": 4}}
    assert relative(outputs(compact, "llama"), masked_outputs(dense("llama"), graph, kept, "llama")) < 1e-5
    with pytest.raises(PlanError, match=r"layers\.0\.query_heads\.0 to .* keep \[1, 2\] units"):
        check_buildable(graph, kept | {"layers.0.query_heads.1": (0, 1)})


def test_the_experts_of_a_stack_must_keep_as_many_channels() -> None:
    graph = graph_of("mixtral")
    kept = {d.name: tuple(range(d.size)) for d in graph.dimensions}
    channels = next(d.name for d in graph.dimensions if d.kind == "expert_channels")
    with pytest.raises(PlanError, match="must keep the same number"):
        build_compact(dense("mixtral"), graph, kept | {channels: tuple(range(8))})


def test_what_the_configuration_cannot_say_is_left_to_the_other_entry() -> None:
    heads = graph_of("gpt2", custom_code=True)
    assert per_layer_config(dense("gpt2"), heads, uneven_units(heads)) is None
    graph = graph_of("llama")
    kept = {d.name: tuple(range(d.size)) for d in graph.dimensions}
    assert per_layer_config(dense("llama"), graph, kept | {"layers.0.kv_groups": ()}) is None


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "phi3", "falcon-grouped"])
def test_both_caches_generate_the_same_tokens(name: str) -> None:
    ids = torch.arange(5, 12)[None]
    options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    dynamic = built(name).generate(ids, **options)
    assert torch.equal(dynamic, built(name).generate(ids, cache_implementation="static", **options))
    assert dynamic.shape[1] > ids.shape[1] + 1


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen3_moe"])
def test_layers_follow_the_model_s_configuration_also_in_a_copy(name: str) -> None:
    model = copy.deepcopy(built(name))
    model.set_attn_implementation("eager")
    for layer in model.model.layers:
        assert layer.self_attn.config._attn_implementation == "eager"
    first = model.model.layers[0].self_attn.config
    assert isinstance(first, OwnConfig)
    assert (first.num_key_value_heads, model.config.num_key_value_heads) == (3, 4)
    assert relative(outputs(model, name), outputs(built(name), name)) < 1e-5
    assert built(name).model.layers[0].self_attn.config._attn_implementation == "sdpa"


def test_a_new_model_of_the_configuration_is_initialised() -> None:
    torch.manual_seed(0)
    config = copy.deepcopy(built("llama").config)
    config.initializer_range = 0.5
    model = compact_class(LlamaForCausalLM)(config)
    for layer in model.model.layers:
        assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.5, rel=0.1)
        assert torch.equal(layer.input_layernorm.weight, torch.ones(32))


class Capable(LlamaForCausalLM):
    """What transformers may do one day: every layer is built from its own configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            self.model.layers[index] = type(layer)(config.per_layer_config[index], index)


def test_a_class_that_builds_such_layers_itself_is_used_as_it_is() -> None:
    config = copy.deepcopy(built("llama").config)
    model: Any = compact_class(Capable)(config)
    assert type(model) is Capable
    assert model.config.architectures == ["Capable"]
    assert not hasattr(model.config, "auto_map")
    model.load_state_dict(built("llama").state_dict())
    assert torch.equal(outputs(model.eval(), "llama"), outputs(built("llama"), "llama"))


def test_gradients_are_those_without_checkpointing() -> None:
    model = copy.deepcopy(built("llama")).requires_grad_(True).train()
    batch = zoo.inputs("llama", zoo.ZOO["llama"])
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            vendor.recompute_activations(model)
        model.zero_grad()
        model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(plain, checked) for plain, checked in zip(*gradients, strict=True))
