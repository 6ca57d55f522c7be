"""Whole layers and blocks as units: what is found, what it costs, what a mask silences, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from deepening import DECODERS, LAYERS, deep, deep_graph, layers_of, muted, random_choice, without
from hypothesis import given, settings
from hypothesis import strategies as st
from shrinking import masks_of, outputs
from transformers import GPT2Config, GPT2LMHeadModel
from workbench import adapted, backward

from passes.errors import OptionError, PlanError, UnsupportedModelError
from passes.graph import Kept, Kind, Plan, PruningGraph, full_masks
from passes.models import MaskedModel, masked
from passes.options import TraceOptions
from passes.trace import trace
from passes.trace.depth import depth_of

LAST = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "gemma2": ("self_attn.o_proj", "mlp.down_proj"),
    "phi": ("self_attn.dense", "mlp.fc2"),
    "opt": ("self_attn.out_proj", "fc2"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "falcon-mha-alibi": ("self_attention.dense", "mlp.dense_4h_to_h"),
}
SHARED_NORM = {"cohere", "cohere-qk-norm", "stablelm-parallel", "phi", "phi-qk-layernorm", "gptj", "falcon-mqa"}


def test_without_depth_the_graph_has_none() -> None:
    assert trace(deep("llama").config).depth == ()
    with pytest.raises(OptionError, match=r"unknown depth .*: choose one of layers, blocks"):
        TraceOptions(depth="deep")


@pytest.mark.parametrize("name", DECODERS)
def test_layers_and_blocks_are_found_and_own_what_is_theirs(name: str) -> None:
    layers = deep_graph(name, "layers").by_name["layers"]
    everything = {p for p, _ in deep(name).named_parameters() if f".{LAYERS - 1}." in p}
    assert layers.size == LAYERS
    assert set(layers.owned[-1]) == everything
    graph = deep_graph(name, "blocks")
    blocks = [set(dimension.owned[-1]) for dimension in graph.depth]
    if len(blocks) == 2:
        assert not blocks[0] & blocks[1]
        left = {p for p in everything if p not in blocks[0] | blocks[1]}
        assert bool(left) == (name in SHARED_NORM)
        assert all("norm" in p or "ln_" in p for p in left)
    else:
        assert "caches of several kinds" in graph.untouched["attention_blocks"]
    assert all(d.slices == () and d.layer == -1 for d in graph.depth)


@pytest.mark.parametrize("name", LAST)
def test_a_masked_layer_returns_its_input(name: str) -> None:
    model, graph = deep(name), deep_graph(name, "layers")
    shallow = copy.deepcopy(model)
    del layers_of(shallow)[1]  # without a cache, a layer does not need to know its number
    shallow.config.num_hidden_layers = LAYERS - 1
    if getattr(shallow.config, "layer_types", None):
        del shallow.config.layer_types[1]
    kept = without(graph, ("layers", 1))
    batch = zoo.inputs(model, zoo.ZOO[name])
    with torch.no_grad(), masked(model, graph, masks_of(graph, kept)):
        skipped = model(**batch, use_cache=False).logits
    with torch.no_grad():
        wanted = shallow(**batch, use_cache=False).logits
    assert torch.allclose(skipped[batch["attention_mask"].bool()], wanted[batch["attention_mask"].bool()], atol=1e-6)


@pytest.mark.parametrize("name", LAST)
@pytest.mark.parametrize("kind", ["attention_blocks", "mlp_blocks"])
def test_a_masked_block_adds_nothing(name: str, kind: str) -> None:
    graph = deep_graph(name, "blocks")
    if kind not in graph.by_name:
        pytest.skip("its attention blocks stay")
    paths = [path for path, _ in deep(name).named_modules()]
    last = LAST[name][kind == "mlp_blocks"]
    silent = muted(deep(name), [path for path in paths if path.endswith(f".2.{last}")])
    kept = without(graph, (kind, 2))
    with masked(deep(name), graph, masks_of(graph, kept)):
        assert torch.allclose(outputs(deep(name), name), outputs(silent, name), atol=1e-6)
    assert not torch.allclose(outputs(deep(name), name), outputs(silent, name), atol=1e-3)


def test_an_adapter_is_skipped_too_and_gradients_flow_past() -> None:
    program = adapted(deep_copy("llama"))
    graph = deep_graph("llama", "blocks")
    kept = without(graph, ("attention_blocks", 1), ("mlp_blocks", 0))
    program.model.train()
    with masked(program.model, graph, masks_of(graph, kept)):
        backward(program.model, torch.arange(24).view(2, 12))
    size = {name: float(p.grad.abs().max()) for name, p in program.model.named_parameters() if p.grad is not None}
    of = {name: value for name, value in size.items() if "lora_B" in name}
    assert len(of) == LAYERS * 7
    for name, value in of.items():
        gone = ".1.self_attn." in name or ".0.mlp." in name
        assert (value == 0) == gone, name


def deep_copy(name: str):
    return copy.deepcopy(deep(name))


def test_a_mixture_without_experts_inside_a_skipped_block_runs() -> None:
    graph = deep_graph("mixtral", "blocks")
    masks = masks_of(graph, without(graph, ("mlp_blocks", 1)))
    assert not masks["layers.1.experts"].any()
    with masked(deep("mixtral"), graph, masks):
        assert torch.isfinite(outputs(deep("mixtral"), "mixtral")).all()


def test_hooks_come_off() -> None:
    model, graph = deep("phi"), deep_graph("phi", "layers")
    before = outputs(model, "phi")
    hooks = MaskedModel(model, graph)
    hooks.set({**full_masks(graph), "layers": torch.tensor([True, False, False, True])})
    assert not torch.equal(outputs(model, "phi"), before)
    hooks.remove()
    assert torch.equal(outputs(model, "phi"), before)


@settings(max_examples=12, deadline=None)
@given(name=st.sampled_from(["llama", "phi", "mixtral", "falcon-mqa", "qwen3_moe-mixed"]),
       depth=st.sampled_from(["layers", "blocks"]), seed=st.integers(0, 10**6))  # fmt: skip
def test_costs_are_those_of_the_parameters_that_are_left(name: str, depth: str, seed: int) -> None:
    """Counted from the shapes alone, with the layers that are gone struck out."""
    graph = deep_graph(name, depth)
    kept = random_choice(graph, seed)
    plain = trace(deep(name).config, torch.float32)
    counts = {n: len(units) for n, units in kept.items() if units and n in plain.by_name}
    gone = {p for d in graph.depth for u in range(d.size) if u not in kept[d.name] for p in d.owned[u]}
    left = {p: plain.numel(p, counts) for p in plain.shapes if p not in gone}
    cost = graph.cost(kept)
    assert cost.parameters == graph.parameters(kept) == sum(left.values())
    experts = {p for p in plain.matmuls if len(plain.shapes[p]) == 3}
    visited = graph.experts_per_token
    shares = {p: min(1, visited / plain.shape(p, counts)[0]) if p in experts else 1 for p in left}
    assert cost.macs == sum(round(left[p] * shares[p]) for p in plain.matmuls if p in left)
    assert cost.weight_bytes == 4 * cost.parameters
    partly: Kept = {n: len(units) if units and n not in ("layers", *BLOCKS) else units for n, units in kept.items()}
    assert graph.cost(partly) == cost


BLOCKS = ("attention_blocks", "mlp_blocks")


@pytest.mark.parametrize(("name", "query_heads"), [("llama", False), ("llama", True), ("falcon-mqa", False)])
def test_the_cache_of_attention_that_is_gone_costs_nothing(name: str, query_heads: bool) -> None:
    for depth, dimension in (("layers", "layers"), ("blocks", "attention_blocks")):
        graph = deep_graph(name, depth, query_heads=query_heads)
        dense, kept = graph.cost().kv_cache_bytes, {dimension: (0, 3)}
        assert dense
        assert graph.cost(kept).kv_cache_bytes == dense // 2


def test_the_inner_dimensions_of_what_is_gone_keep_nothing() -> None:
    graph = deep_graph("qwen3_moe", "blocks")
    kept = graph.complete({"mlp_blocks": (0, 1, 3), "layers.0.kv_groups": 2})
    empty = {name for name, units in kept.items() if units == ()}
    assert empty == {"layers.2.experts", *(f"layers.2.expert_channels.{i}" for i in range(4))}
    assert graph.shape("model.layers.2.mlp.experts.down_proj", kept)[-1] == 0
    assert graph.uniform({"mlp_blocks": (0, 1, 3)})["layers.2.experts"] == ()


def test_a_number_of_layers_is_no_choice() -> None:
    graph = deep_graph("llama", "layers")
    with pytest.raises(OptionError, match="3 of 4 layers stay, but the cost depends on which"):
        graph.cost({"layers": 3})
    assert graph.cost({"layers": 4}) == graph.cost()


@pytest.mark.parametrize("name", ["bert", "t5", "bart", "vit", "modernbert"])
@pytest.mark.parametrize("depth", ["layers", "blocks"])
def test_what_is_no_causal_decoder_is_refused(name: str, depth: str) -> None:
    case = zoo.ZOO[name]
    with pytest.raises(UnsupportedModelError, match="depth is for causal decoders"):
        trace(case.config(), model_type=case.model_class, options=TraceOptions(depth=depth))


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("opt-post-norm", {}, "its input still goes through NativeLayerNorm"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "goes through NativeLayerNorm"),
        ("llama", {"num_hidden_layers": 1}, "one layer, which has to stay"),
    ],
)
def test_layers_that_are_no_terms_of_a_sum_are_refused(name: str, changes: dict[str, object], why: str) -> None:
    with pytest.raises(UnsupportedModelError, match=why):
        trace(zoo.ZOO[name].config(**changes), options=TraceOptions(depth="layers"))


def test_layers_that_depend_on_their_number_are_refused() -> None:
    config = GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=64, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(UnsupportedModelError, match="changes with its number: scaling"):
        trace(config, model_type=GPT2LMHeadModel, options=TraceOptions(depth="layers"))
    assert trace(config, options=TraceOptions(depth="blocks")).of_kind(Kind.ATTENTION_BLOCKS)


def plan_for(graph: PruningGraph, kept: Kept) -> Plan:
    values = {name: tuple(units) for name, units in kept.items()}  # type: ignore[arg-type]
    budget = {"parameters": 0.9}
    return Plan(source="", family=graph.family, budget=budget, source_parameters=2, target_parameters=1, kept=values)


def test_a_plan_with_layers_gone_gives_masks_and_comes_back_from_json() -> None:
    graph = deep_graph("llama", "layers")
    plan = plan_for(graph, without(graph, ("layers", 2)))
    again = Plan.from_json(plan.to_json())
    assert again == plan
    masks = again.masks(graph)
    assert masks["layers"].tolist() == [True, True, False, True]
    assert not masks["layers.2.kv_groups"].any()
    assert depth_of(plan.kept) == "layers"
    assert depth_of(without(deep_graph("gemma2", "blocks"))) == "blocks"
    assert depth_of(["layers.0.kv_groups"]) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"layers.1.kv_groups": ()}, "keeps no units of layers.1.kv_groups: at least one has to stay"),
        ({"layers.2.kv_groups": (0,)}, "keeps units of layers.2.kv_groups, but not layers 2"),
        ({"layers": ()}, "layers must be a non-empty"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(changes: dict[str, tuple[int, ...]], why: str) -> None:
    graph = deep_graph("llama", "layers")
    with pytest.raises(PlanError, match=why):
        plan_for(graph, {**without(graph, ("layers", 2)), **changes}).masks(graph)
