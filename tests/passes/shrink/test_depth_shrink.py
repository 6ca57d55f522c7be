"""Layers and blocks removed for real: the same function, exact counts, caches, checkpoints."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zoo
from deepening import DECODERS, LAYERS, deep, deep_graph, random_choice, without
from shrinking import decoded, masks_of, outputs
from transformers import AutoModelForCausalLM, PreTrainedModel
from uneven import uneven_units
from workbench import plan_of

from exporters.hf.checkpoint import first_different_tensor, save_checkpoint
from passes.graph import Plan
from passes.models import count_parameters, masked, relative_difference
from passes.pipeline import Program
from passes.shrink import ShrinkPass, build_compact
from passes.shrink.layers import layer_config

FEW = ["llama", "qwen3", "phi", "gpt_neox", "mixtral", "opt", "bloom"]
CORE = {*FEW, "gemma2", "phi3", "falcon-mqa"}
"""Each layout of layers and blocks once; the others are of the matrix."""
EACH = [pytest.param(name, marks=() if name in CORE else pytest.mark.matrix) for name in DECODERS]


def compact_of(name: str, depth: str, *gone: tuple[str, int]) -> PreTrainedModel:
    graph = deep_graph(name, depth)
    return build_compact(deep(name), graph, without(graph, *gone))


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("depth", ["layers", "blocks"])
def test_the_compact_model_computes_what_the_masked_one_does(name: str, depth: str) -> None:
    graph = deep_graph(name, depth, custom_code=True)
    for seed in range(2):
        kept = random_choice(graph, seed)
        with masked(deep(name), graph, masks_of(graph, kept)):
            expected = outputs(deep(name), name)
        compact = build_compact(deep(name), graph, kept)
        assert count_parameters(compact) == graph.parameters(kept)
        assert relative_difference(outputs(compact, name), expected) < 1e-5
        stepwise = decoded(compact, name)
        assert stepwise is None or relative_difference(stepwise, outputs(compact, name)) < 1e-5


@pytest.mark.parametrize(
    ("name", "query_heads"), [(name, False) for name in DECODERS] + [(n, True) for n in ("phi3", "llama", "cohere")]
)
def test_uneven_layers_beside_absent_blocks_compute_what_the_masked_ones_do(name: str, query_heads: bool) -> None:
    """No per_layer_config can say an absent block, so the sizes of all others are given to a dense model's modules."""
    graph = deep_graph(name, "blocks", query_heads=query_heads)
    gone = {("attention_blocks", 1), ("mlp_blocks", 2)} & {(d.name, u) for d in graph.depth for u in range(d.size)}
    inside = replace(graph, dimensions=tuple(d for d in graph.dimensions if not d.kind.is_depth))
    kept = graph.complete({**without(graph, *gone), **uneven_units(inside)})
    compact = build_compact(deep(name), graph, kept)
    assert count_parameters(compact) == graph.parameters(kept)
    with masked(deep(name), graph, masks_of(graph, kept)):
        expected = outputs(deep(name), name)
    assert relative_difference(outputs(compact, name), expected) < 1e-5
    stepwise = decoded(compact, name)
    assert stepwise is None or relative_difference(stepwise, outputs(compact, name)) < 1e-5


@pytest.mark.parametrize("name", EACH)
def test_fewer_layers_are_a_stock_model_with_renumbered_tensors(name: str) -> None:
    compact, dense = compact_of(name, "layers", ("layers", 0), ("layers", 2)), deep(name)
    assert type(compact) is type(dense)
    assert compact.config.num_hidden_layers == 2
    assert getattr(compact.config, "compact", None) is None
    theirs = dict(dense.named_parameters())
    for tensor, parameter in compact.named_parameters():
        old = tensor.replace(".1.", ".3.", 1) if ".1." in tensor else tensor.replace(".0.", ".1.", 1)
        assert torch.equal(parameter, theirs[old]), tensor
    for entry in ("layer_types", "no_rope_layers"):
        if getattr(dense.config, entry, None) is not None:
            assert getattr(compact.config, entry) == [getattr(dense.config, entry)[i] for i in (1, 3)]


def test_the_numbers_of_dense_layers_in_a_mixture_follow() -> None:
    config = zoo.ZOO["qwen3_moe"].config(num_hidden_layers=6, mlp_only_layers=[1], decoder_sparse_step=2)
    smaller = layer_config(config, (1, 2, 3, 5))
    # layers 0, 2 and 4 are no multiples of the step when counted from 1, and layer 1 is named: 3 and 5 are mixtures
    assert (smaller.mlp_only_layers, smaller.decoder_sparse_step, smaller.num_hidden_layers) == ([0, 1], 1, 4)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize(
    ("depth", "gone"),
    [("layers", [("layers", 0)]), ("blocks", [("attention_blocks", 0), ("attention_blocks", 2), ("mlp_blocks", 1)])],
)
def test_generate_with_both_caches_continues_as_the_masked_model(
    name: str, depth: str, gone: list[tuple[str, int]]
) -> None:
    graph, compact = deep_graph(name, depth), compact_of(name, depth, *gone)
    ids = torch.arange(2, 12).view(2, 5)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    with masked(deep(name), graph, masks_of(graph, without(graph, *gone))):
        expected = deep(name).generate(ids, **settings)
    assert torch.equal(compact.generate(ids, **settings), expected)
    if type(compact)._can_compile_fullgraph:
        assert torch.equal(compact.generate(ids, cache_implementation="static", **settings), expected)


def test_a_sliding_and_a_full_layer_stay_what_they_are() -> None:
    """Gemma 2 keeps caches of two kinds by the layer's number: with a layer gone, the windows move with the layers."""
    compact, graph = compact_of("gemma2", "layers", ("layers", 1)), deep_graph("gemma2", "layers")
    assert compact.config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    ids = torch.arange(2, 22).view(2, 10)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    with masked(deep("gemma2"), graph, masks_of(graph, without(graph, ("layers", 1)))):
        expected = deep("gemma2").generate(ids, **settings)
    for cache in (None, "static"):
        assert torch.equal(compact.generate(ids, cache_implementation=cache, **settings), expected)


def test_heads_and_layers_go_together_in_a_stock_class() -> None:
    graph = deep_graph("llama", "layers")
    kept = {name: units[:2] if "kv_groups" in name else units for name, units in without(graph, ("layers", 1)).items()}
    compact = build_compact(deep("llama"), graph, kept)
    assert (compact.config.num_hidden_layers, compact.config.num_key_value_heads) == (3, 2)
    assert count_parameters(compact) == graph.parameters(kept)


def test_a_block_that_is_gone_leaves_widths_to_the_configuration() -> None:
    graph = deep_graph("phi3", "blocks")
    kept = without(graph, ("attention_blocks", 1))
    kept = {name: units[:2] if "kv_groups" in name else units for name, units in kept.items()}
    compact = build_compact(deep("phi3"), graph, kept)
    assert compact.config.num_key_value_heads == 2  # Phi 3 asks its configuration for the heads while it runs
    assert set(compact.config.compact["shapes"]) == set(graph.by_name["attention_blocks"].owned[1])
    with masked(deep("phi3"), graph, masks_of(graph, kept)):
        assert relative_difference(outputs(compact, "phi3"), outputs(deep("phi3"), "phi3")) < 1e-5


@pytest.mark.parametrize("name", FEW)
def test_a_checkpoint_without_blocks_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    compact = compact_of(name, "blocks", ("attention_blocks", 0), ("mlp_blocks", 2))
    save_checkpoint(compact, None, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert first_different_tensor(compact, loaded) is None
    assert torch.equal(outputs(loaded, name), outputs(compact, name))
    ids = torch.arange(2, 8)[None]
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(ids, **settings), compact.generate(ids, **settings))


@pytest.mark.parametrize(("name", "gone"), [(n, "attention_blocks") for n in FEW] + [("mixtral", "mlp_blocks")])
def test_a_stock_class_refuses_a_checkpoint_without_blocks(name: str, gone: str, tmp_path: Path) -> None:
    """Absent tensors would be filled with random values; tensors of no elements are a mismatch."""
    compact = compact_of(name, "blocks", (gone, 0))
    save_checkpoint(compact, None, tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        type(deep(name)).from_pretrained(tmp_path)


def plan(program: Program, kept: dict[str, tuple[int, ...]]) -> Plan:
    values = {**vars(plan_of(program, {})), "kept": kept, "target_parameters": program.traced.parameters(kept)}
    return Plan(**values)


@pytest.mark.parametrize(
    ("name", "depth", "gone"),
    [
        ("llama", "layers", ("layers", 1)),
        ("mixtral", "layers", ("layers", 1)),
        ("mixtral", "blocks", ("mlp_blocks", 1)),
    ],
)
def test_the_pass_verifies_what_it_removed(name: str, depth: str, gone: tuple[str, int]) -> None:
    """Mixtures are compared router by router, whatever number their layer has now."""
    graph = deep_graph(name, depth)
    program = Program.start(copy.deepcopy(deep(name)))
    program = Program(model=program.model, probe=program.probe, graph=graph)
    made = plan(program, without(graph, gone))
    program = Program(
        model=program.model, probe=program.probe, graph=graph, plan=made, masks=made.masks(graph)
    ).expecting_itself()
    result = ShrinkPass()(program).program
    assert count_parameters(result.model) == graph.parameters(made.kept)
    response = result.respond()
    if name == "mixtral":
        assert len(response.choices) == LAYERS - 1
        assert "model.layers.3.mlp.gate" in response.choices
