"""The importance of layers and blocks: the scores inside them summed, or the rise of the loss without them."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import zoo
from deepening import LAYERS, deep, deep_graph, muted
from peft import LoraConfig, get_peft_model
from workbench import adapted, backward, scores_of

from passes.criteria import Magnitude, make_criterion
from passes.criteria.skipped import skip_scores
from passes.errors import DataError, UnsupportedModelError
from passes.models import ADAPTER, GRADIENT, scored_by
from passes.options import ImportanceOptions
from passes.pipeline import Program

IDS = torch.arange(36).view(3, 12)


def scored(depth: str, *, normalise: bool) -> tuple[Program, dict[str, torch.Tensor]]:
    program = replace(adapted(copy.deepcopy(deep("llama"))), graph=deep_graph("llama", depth))
    backward(program.model, IDS)
    return program, scores_of(program, ImportanceOptions(normalise=normalise))


def test_a_layer_scores_what_its_weights_score() -> None:
    """Each weight of attention and MLP is produced or consumed by one dimension's units, which add up to all of it."""
    _, scores = scored("layers", normalise=False)
    _, blocks = scored("blocks", normalise=False)
    for layer in range(LAYERS):
        heads, channels = scores[f"layers.{layer}.kv_groups"].sum(), scores[f"layers.{layer}.mlp_channels"].sum()
        assert torch.allclose(scores["layers"][layer], heads + channels, rtol=1e-5)
        assert torch.allclose(blocks["attention_blocks"][layer], heads, rtol=1e-5)
        assert torch.allclose(blocks["mlp_blocks"][layer], channels, rtol=1e-5)


def test_normalised_each_projection_weighs_the_same_over_the_layers() -> None:
    program, _ = scored("layers", normalise=False)
    _, normalised = scored("layers", normalise=True)
    total = torch.zeros(LAYERS)
    for projection in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        sums = torch.zeros(LAYERS)
        for layer in range(LAYERS):
            path = f"layers.{layer}.{'mlp' if projection in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}"
            module = program.model.get_submodule(f"base_model.model.model.{path}.{projection}")
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            gradient = b.grad @ a + b @ a.grad
            merged = module.base_layer.weight + module.scaling["default"] * b @ a
            sums[layer] = (gradient * merged).square().sum()
        total += sums / sums.norm()
    assert torch.allclose(normalised["layers"], total, rtol=1e-4)


def test_magnitude_adds_up_experts_without_their_router() -> None:
    model = get_peft_model(copy.deepcopy(deep("mixtral")), LoraConfig(target_modules=["q_proj"], r=2))
    criterion = Magnitude(deep_graph("mixtral", "blocks"))
    criterion.observe(model)
    for layer, each in enumerate(deep("mixtral").model.layers):
        experts = each.mlp.experts
        wanted = sum(float(w.detach().square().sum()) for w in (experts.gate_up_proj, experts.down_proj))
        assert float(criterion.scores["mlp_blocks"][layer]) == pytest.approx(wanted, rel=1e-5)


def test_blocks_without_an_adapter_are_scored_by_their_gradient() -> None:
    model = get_peft_model(copy.deepcopy(deep("llama")), LoraConfig(target_modules=["q_proj"], r=2))
    graph = deep_graph("llama", "blocks")
    ways = scored_by(model, graph)
    assert (ways["attention_blocks"], ways["mlp_blocks"]) == (ADAPTER, GRADIENT)
    criterion = make_criterion("loraprune", graph, ImportanceOptions(normalise=False, smoothing=0.0), 0)
    criterion.begin(model)
    backward(model, IDS)
    weights = {n: p for n, p in model.named_parameters() if ".1.mlp." in n}
    wanted = sum(float((p.detach() * p.grad).square().sum()) for p in weights.values())
    assert criterion.observe(model)
    criterion.end(model)
    assert float(criterion.scores["mlp_blocks"][1]) == pytest.approx(wanted, rel=1e-4)


def test_skip_scores_are_the_rise_of_the_loss() -> None:
    model, graph = deep("llama"), deep_graph("llama", "blocks")
    batches = [{"input_ids": ids, "labels": ids} for ids in (IDS, IDS + 5)]
    scores = skip_scores(model, graph, batches)
    assert set(scores) == {"attention_blocks", "mlp_blocks"}
    for name, last in (("attention_blocks", "self_attn.o_proj"), ("mlp_blocks", "mlp.down_proj")):
        rises = []
        for layer in range(LAYERS):
            silent = muted(model, [f"model.layers.{layer}.{last}"])
            with torch.no_grad():
                rises.append(sum(float(silent(**b).loss - model(**b).loss) for b in batches) / 2)
        assert torch.allclose(scores[name], torch.tensor(rises).clamp_min(0), atol=1e-5)
        assert scores[name].dtype is torch.float32


def test_skip_scores_leave_the_model_as_it_was() -> None:
    model = copy.deepcopy(deep("llama")).train()
    model.model.layers[0].self_attn.attention_dropout = 0.9
    batch = [{"input_ids": IDS, "labels": IDS}]
    first, second = (skip_scores(model, deep_graph("llama", "layers"), batch)["layers"] for _ in range(2))
    assert torch.equal(first, second)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_skip_scores_want_a_batch_with_labels_and_a_graph_with_depth() -> None:
    model, graph = deep("llama"), deep_graph("llama", "layers")
    with pytest.raises(DataError, match="no batch"):
        skip_scores(model, graph, [])
    with pytest.raises(DataError, match="it needs labels"):
        skip_scores(model, graph, [zoo.inputs(model, zoo.ZOO["llama"])])
    with pytest.raises(UnsupportedModelError, match="trace with TraceOptions"):
        skip_scores(model, replace(graph, dimensions=()), [])
