"""REAP against its formula, a token at a time, on recorded inputs of the experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import zoo
from criteria_workbench import PLAIN, batch_of, row_of
from handmade import exact, relative
from torch.nn import functional

from passes.criteria import Reap, Wanda
from passes.errors import UnsupportedModelError
from passes.graph import Kind, full_masks
from passes.models import masked
from passes.trace import trace


@torch.no_grad()
def by_hand(stack: Any, seen: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The means [experts] and [experts, channels] over these tokens."""
    experts, _, size = stack.down_proj.shape
    tokens, outputs = torch.zeros(experts), torch.zeros(experts)
    channels = torch.zeros(experts, size)
    for hidden, chosen, gates in zip(*seen, strict=True):
        for expert, gate in zip(chosen.tolist(), gates, strict=True):
            first, second = (stack.gate_up_proj[expert] @ hidden).chunk(2)
            inner = functional.silu(first) * second
            tokens[expert] += 1
            outputs[expert] += gate * (stack.down_proj[expert] @ inner).norm()
            for channel in range(size):
                channels[expert, channel] += gate * (inner[channel] * stack.down_proj[expert][:, channel]).norm()
    return outputs / tokens.clamp_min(1), channels / tokens.clamp_min(1)[:, None]


@pytest.mark.parametrize("hidden_expert", [False, True])
def test_scores_are_the_formula_over_the_real_tokens_of_each_expert(hidden_expert: bool) -> None:
    model = exact(zoo.build("mixtral"))
    graph, batch = trace(model.config), batch_of("mixtral")
    real = batch["attention_mask"].bool()
    assert not real.all()
    masks = full_masks(graph)
    if hidden_expert:
        masks["layers.0.experts"][1] = False
    criterion, stack, seen = Reap(graph, PLAIN), model.model.layers[0].mlp.experts, []
    with masked(model, graph, masks), torch.no_grad():
        handle = stack.register_forward_pre_hook(lambda _, inputs: seen.extend(each.clone() for each in inputs[:3]))
        criterion.begin(model)
        model(**batch)
        handle.remove()
        assert criterion.observe(model)
        criterion.end(model)
    kept = [each[real.flatten()] for each in seen]
    outputs, channels = by_hand(stack, kept)
    assert relative(criterion.scores["layers.0.experts"], outputs) < 1e-5
    for expert in range(len(outputs)):
        found = criterion.scores[f"layers.0.expert_channels.{expert}"]
        torch.testing.assert_close(found, channels[expert].to(found), rtol=1e-5, atol=0)
    assert bool(outputs[1] == 0) is hidden_expert
    assert not stack._forward_pre_hooks


def test_what_is_no_expert_s_is_ranked_as_by_wanda() -> None:
    model = exact(zoo.build("qwen3_moe-mixed"))
    graph, batch = trace(model.config), batch_of("qwen3_moe-mixed")
    inside = (Kind.EXPERTS, Kind.EXPERT_CHANNELS)
    rest = replace(graph, dimensions=tuple(each for each in graph.dimensions if each.kind not in inside))
    found = []
    for criterion in (Reap(graph, PLAIN), Wanda(rest, PLAIN)):
        criterion.begin(model)
        with torch.no_grad():
            model(**row_of(batch, 0))
        assert criterion.observe(model)
        criterion.end(model)
        found.append(criterion.scores)
    assert {dimension.kind for dimension in rest.dimensions} == {Kind.KV_GROUPS, Kind.MLP_CHANNELS}
    assert found[0].keys() == {dimension.name for dimension in graph.dimensions}
    assert all(torch.equal(found[0][name], score) for name, score in found[1].items())


def test_experts_that_are_computed_together_are_refused() -> None:
    model = exact(zoo.build("mixtral"))
    graph = trace(model.config)
    for layer in model.model.layers:
        layer.mlp.experts.__class__ = type("Bare", (torch.nn.Module,), {"forward": lambda *_: None})
        del layer.mlp.experts.has_gate
    with pytest.raises(UnsupportedModelError, match=r"computes its experts together.*choose.*loraprune"):
        Reap(graph, PLAIN).begin(model)
