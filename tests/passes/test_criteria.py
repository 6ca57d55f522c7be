from __future__ import annotations

import pytest
import torch
from workbench import Blocks, adapted, backward, build_model, dense_twin, relative, unit_indices

from passes.adapter import projections
from passes.criteria import LoRAPrune, make_criterion
from passes.errors import OptionError
from passes.importance import ImportanceOptions, unit_scores


def test_loraprune_averages_from_zero_and_can_be_observed_again() -> None:
    program = adapted(build_model("llama"))
    graph, options = program.traced, ImportanceOptions(smoothing=0.9)
    criterion = LoRAPrune(graph, options)
    expected = {d.name: torch.zeros(d.size) for d in graph.dimensions}
    for seed in (1, 2):
        backward(program.model, Blocks(2, seed=seed).ids)
        found = dict(projections(program.model, graph))
        for dimension in graph.dimensions:
            expected[dimension.name] = 0.9 * expected[dimension.name] + 0.1 * unit_scores(dimension, found, options)
        assert criterion.observe(program.model)
    for name, score in criterion.scores.items():
        assert relative(score, expected[name]) < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loraprune_leaves_its_average_alone_when_a_gradient_is_not_finite(value: float) -> None:
    program = adapted(build_model("llama"))
    criterion = LoRAPrune(program.traced, ImportanceOptions())
    backward(program.model, Blocks(2).ids)
    assert criterion.observe(program.model)
    before = {name: score.clone() for name, score in criterion.scores.items()}
    layer = program.model.get_base_model().model.layers[1].mlp.up_proj
    layer.lora_A["default"].weight.grad[0, 0] = value
    assert not criterion.observe(program.model)
    assert all(torch.equal(score, before[name]) for name, score in criterion.scores.items())


def test_magnitude_is_the_squared_norm_of_the_merged_weights() -> None:
    program = adapted(build_model("llama"))
    criterion = make_criterion("magnitude", program.traced, ImportanceOptions(), 0)
    assert criterion.observe(program.model)
    layer = dense_twin(program.model, build_model("llama")).requires_grad_(False).model.layers[1]
    config = build_model("llama").config
    for unit in range(4):
        expected = sum(
            float(getattr(layer.self_attn, name).weight[unit_indices(config, name, unit)].square().sum())
            for name in ("q_proj", "k_proj", "v_proj")
        )
        columns = layer.self_attn.o_proj.weight[:, unit_indices(config, "o_proj", unit)]
        expected += float(columns.square().sum())
        assert float(criterion.scores["layers.1.kv_groups"][unit]) == pytest.approx(expected, rel=1e-5)


def test_random_depends_on_the_seed_alone() -> None:
    graph = adapted(build_model("llama")).traced
    one, same, other = (make_criterion("random", graph, ImportanceOptions(), seed).scores for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_an_unknown_criterion_is_refused_with_the_known_ones() -> None:
    graph = adapted(build_model("llama")).traced
    with pytest.raises(OptionError, match=r"'taylor'.*loraprune, magnitude, random"):
        make_criterion("taylor", graph, ImportanceOptions(), 0)
