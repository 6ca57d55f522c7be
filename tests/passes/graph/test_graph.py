from __future__ import annotations

import pytest
import torch
import zoo
from shrinking import counted, dense, graph_of, some_units
from torch import nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D
from workbench import build_model, planned, random_kept, shapes_by_hand, traced, uniform

from passes.graph import Cost, Dimension, Kind, Role, Slice
from passes.models import vendor
from passes.shrink import ShrinkPass, build_compact
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
    model(input_ids=torch.arange(TOKENS)[None], use_cache=True, **vendor.with_cache(model, cache))
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


def counted_macs(model: nn.Module, name: str) -> int:
    """Multiply-accumulates of all matrix products of weights in a forward pass over one token (of each side)."""
    counted: list[int] = []

    def linear(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        counted.append(inputs[0].shape[-1] * output.numel())

    def experts(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        counted.append(inputs[1].numel() * (module.gate_up_proj[0].numel() + module.down_proj[0].numel()))

    def router(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        counted.append(module.weight.numel())

    hooks = [m.register_forward_hook(linear) for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    mixtures = [m for m in model.modules() if hasattr(m, "experts")]
    hooks += [m.experts.register_forward_hook(experts) for m in mixtures]
    hooks += [m.gate.register_forward_hook(router) for m in mixtures]
    one = {"input_ids": torch.tensor([[7]])}
    model(**one, **({"decoder_input_ids": torch.tensor([[9]])} if zoo.ZOO[name].task == "seq2seq-lm" else {}))
    for hook in hooks:
        hook.remove()
    return sum(counted)


def cached_bytes(model: nn.Module, name: str) -> int:
    """Bytes a target token in a real cache; what cross-attention keeps of the source does not grow."""
    task, ids = zoo.ZOO[name].task, torch.arange(TOKENS)[None]
    if task == "causal-lm":
        cache = vendor.cache_of(model(input_ids=ids, use_cache=True))
    elif task == "seq2seq-lm":
        cache = vendor.cache_of(model(input_ids=ids, decoder_input_ids=ids, use_cache=True)).self_attention_cache
    else:
        return 0
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) // TOKENS


@pytest.mark.parametrize("query_heads", [False, True])
@pytest.mark.parametrize(
    "name",
    sorted({*zoo.FUSED, *zoo.MOE, *zoo.SEQ2SEQ, "olmo2", "gptj", "bert", "bert-question-answering", "modernbert"}),
)
@torch.no_grad()
def test_cost_of_any_family_equals_what_the_compact_model_really_has(name: str, query_heads: bool) -> None:
    graph = graph_of(name, custom_code=True, query_heads=query_heads)
    kept = some_units(graph)
    for model, counts in ((dense(name), {}), (build_compact(dense(name), graph, kept), counted(kept))):
        assert graph.cost(counts) == Cost(
            parameters=sum(p.numel() for p in model.parameters()),
            macs=counted_macs(model, name),
            weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
            kv_cache_bytes=cached_bytes(model, name),
        )


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_parameter_index_belongs_to_one_unit_at_most(name: str) -> None:
    """No two dimensions share an index of one axis of one parameter, and all lie inside of it."""
    graph = graph_of(name, custom_code=True)
    for parameter, owners in graph.slices_of.items():
        seen: set[tuple[int | None, int, int]] = set()
        for dimension, part in owners:
            indices = part.indices(range(dimension.size))
            assert set(indices) <= set(range(graph.shapes[parameter][part.axis]))
            places = {(part.at, part.axis, index) for index in indices}
            assert len(places) == len(indices)
            assert not places & seen
            seen |= places


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_follow_the_architecture(family: str, tied: bool) -> None:
    config = build_model(family, tie_word_embeddings=tied, num_hidden_layers=3).config
    graph = trace(config)
    for groups in range(1, 5):
        for channels in (8, 40, 64):
            counts = graph.uniform(uniform(groups, channels))
            assert graph.parameters(counts) == shapes_by_hand(config, groups, channels)


def test_a_unit_owns_an_equal_share_of_its_dimension() -> None:
    graph = trace(build_model("qwen2").config)
    for dimension in graph.dimensions:
        one_less = graph.parameters({dimension.name: dimension.size - 1})
        assert graph.parameters() - one_less == graph.unit_parameters(dimension)


def test_slices_map_units_to_consecutive_blocks() -> None:
    part = Slice("model.layers.0.self_attn.q_proj.weight", 0, ((0, 3),), Role.PRODUCE)
    assert part.indices([0, 2]) == [0, 1, 2, 6, 7, 8]
    assert (part.module, part.width) == ("model.layers.0.self_attn.q_proj", 3)


def test_slices_of_several_segments_map_units_to_a_block_of_each() -> None:
    part = Slice("model.layers.0.self_attn.qkv_proj.weight", 0, ((0, 4), (32, 2), (48, 2)), Role.PRODUCE)
    assert part.indices([1]) == [4, 5, 6, 7, 34, 35, 50, 51]
    assert part.width == 8


@pytest.mark.parametrize(
    ("role", "scored"),
    [("produce", True), ("consume", True), ("own", True), ("follow", False), ("route", False), ("norm", False)],
)
def test_only_weights_are_scored(role: str, scored: bool) -> None:
    part = Slice("model.layers.0.mlp.up_proj.weight", 0, role=Role(role))
    dimension = Dimension("layers.0.mlp_channels", Kind.MLP_CHANNELS, 0, 4, (part,), "mlp_channels")
    assert part.is_weight is scored
    assert bool(dimension.weights) is scored
    assert dimension.of_role(Role(role)) == (part,)


def test_dimensions_are_named_sorted_and_complete() -> None:
    graph = trace(build_model("llama").config)
    assert [d.name for d in graph.dimensions] == [
        "layers.0.kv_groups",
        "layers.0.mlp_channels",
        "layers.1.kv_groups",
        "layers.1.mlp_channels",
    ]
    assert {width.name: width.size for width in graph.widths} == {"kv_groups": 4, "mlp_channels": 64}
    owned = {part.module.rpartition(".")[2] for part in graph.by_name["layers.0.mlp_channels"].of_role(Role.PRODUCE)}
    assert owned == {"gate_proj", "up_proj"}
