from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from workbench import build_model, planned, random_kept, shapes_by_hand, traced

from passes.graph import Cost, Kind, Slice
from passes.shrink import ShrinkPass
from passes.trace import trace

TOKENS = 7


def measured_macs(model: nn.Module) -> int:
    """Multiply-accumulates of all linear layers a token, counted in a forward pass."""
    counted = []
    hooks = [
        module.register_forward_hook(lambda m, _, output: counted.append(m.in_features * output.numel() // TOKENS))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    model(input_ids=torch.arange(TOKENS)[None])
    for hook in hooks:
        hook.remove()
    return sum(counted)


def measured_kv_bytes(model: nn.Module) -> int:
    """Bytes a token in a real cache."""
    cache = DynamicCache()
    model(input_ids=torch.arange(TOKENS)[None], past_key_values=cache, use_cache=True)
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) // TOKENS


@torch.no_grad()
def measured_cost(model: nn.Module) -> Cost:
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        macs=measured_macs(model),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        kv_cache_bytes=measured_kv_bytes(model),
    )


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        ("mistral", {"head_dim": 4, "num_hidden_layers": 3}),
        ("qwen2", {"num_key_value_heads": 2}),
        ("qwen3", {"tie_word_embeddings": False, "head_dim": 16}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cost_equals_what_the_shrunk_model_really_has(family: str, changes: dict, dtype: torch.dtype) -> None:
    program = traced(build_model(family, **changes).to(dtype))
    kept = random_kept(program.traced, 1, 24, seed=3)
    counts = {name: len(units) for name, units in kept.items()}
    assert program.traced.cost() == measured_cost(program.model)
    shrunk = ShrinkPass()(planned(program, kept)).program
    assert program.traced.cost(counts) == measured_cost(shrunk.model)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_follow_the_architecture(family: str, tied: bool) -> None:
    config = build_model(family, tie_word_embeddings=tied, num_hidden_layers=3).config
    graph = trace(config)
    for groups in range(1, 5):
        for channels in (8, 40, 64):
            assert graph.parameters(graph.uniform(groups, channels)) == shapes_by_hand(config, groups, channels)


def test_a_unit_owns_an_equal_share_of_its_dimension() -> None:
    graph = trace(build_model("qwen2").config)
    for dimension in graph.dimensions:
        one_less = graph.parameters({dimension.name: dimension.size - 1})
        assert graph.parameters() - one_less == graph.unit_parameters(dimension)


def test_slices_map_units_to_consecutive_blocks() -> None:
    part = Slice("model.layers.0.self_attn.q_proj.weight", 0, 3)
    assert part.indices([0, 2]) == [0, 1, 2, 6, 7, 8]
    assert part.module == "model.layers.0.self_attn.q_proj"
    assert part.is_weight
    assert not Slice("model.layers.0.self_attn.q_proj.bias", 0, 3).is_weight


def test_dimensions_are_named_sorted_and_complete() -> None:
    graph = trace(build_model("llama").config)
    assert [d.name for d in graph.dimensions] == [
        "layers.0.kv_groups",
        "layers.0.mlp_channels",
        "layers.1.kv_groups",
        "layers.1.mlp_channels",
    ]
    assert (graph.size(Kind.KV_GROUPS), graph.size(Kind.MLP_CHANNELS)) == (4, 64)
    assert graph.query_heads_per_group == 2
    owned = {part.module.rpartition(".")[2] for part in graph.by_name["layers.0.mlp_channels"].outputs}
    assert owned == {"gate_proj", "up_proj"}
