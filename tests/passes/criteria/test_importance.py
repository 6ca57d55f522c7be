from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
import zoo
from handmade import (
    RANK,
    SCALING,
    backward,
    by_loops,
    exact,
    factors,
    graph_of,
    materialised,
    relative,
    weights_of,
    worn,
)
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from passes.algebra import low_rank
from passes.criteria import importance
from passes.criteria.importance import AxisSums, MovingAverage, axis_sums, importance_sums, unit_scores
from passes.errors import OptionError
from passes.graph import Dimension, Kind, PruningGraph, Role, Slice
from passes.models import DenseWeight, Weight, Window, lora_weights, projections
from passes.models.adapter import lora_layers
from passes.models.weights import Projection
from passes.options import ImportanceOptions

FAMILIES = ("llama", "gpt2", "phi3", "mixtral", "qwen3_moe", "qwen3_moe-mixed")
OPTIONS = [
    ImportanceOptions(form=form, normalise=normalise, quadratic=quadratic)
    for form, normalise, quadratic in itertools.product(("square", "abs"), (True, False), (True, False))
]
PLAIN = ImportanceOptions(normalise=False)


def score(graph: PruningGraph, weights: dict[str, Weight], options: ImportanceOptions) -> dict[str, torch.Tensor]:
    return unit_scores(graph, weights, partial(importance_sums, options=options), normalise=options.normalise)


@dataclass(frozen=True)
class Gradients:
    """An adapted model after a backward pass, and its dense twin after its own; both in double precision."""

    model: PeftModel
    twin: PreTrainedModel
    graph: PruningGraph

    def surrogate(self, name: str, *, quadratic: bool) -> torch.Tensor:
        """s(∇W·AᵀA + BBᵀ·∇W) from the true gradient of the dense weight alone, in the parameter's layout."""
        weight, pairs = self.twin.get_parameter(name), factors(self.model, name)
        if weight.dim() == 3:
            return torch.stack([_surrogate(g, a, b, quadratic) for g, (a, b) in zip(weight.grad, pairs, strict=True)])
        if isinstance(self.twin.get_submodule(name.rpartition(".")[0]), Conv1D):
            return _surrogate(weight.grad.T, *pairs[0], quadratic).T
        return _surrogate(weight.grad, *pairs[0], quadratic)

    def weight_scores(self, name: str, options: ImportanceOptions) -> torch.Tensor:
        scores = self.surrogate(name, quadratic=options.quadratic) * self.twin.get_parameter(name).detach()
        return scores**2 if options.form == "square" else scores.abs()

    def unit_scores(self, dimension: Dimension, options: ImportanceOptions) -> torch.Tensor:
        """Weight scores summed by plain loops over the units and their indices."""
        total = torch.zeros(dimension.size, dtype=torch.float64)
        for part in dimension.weights:
            vector = by_loops(self.weight_scores(part.parameter, options), part, dimension.size)
            total += vector / vector.norm() if options.normalise else vector
        return total


def _surrogate(true: torch.Tensor, a: torch.Tensor, b: torch.Tensor, quadratic: bool) -> torch.Tensor:
    gradient = SCALING * (true @ a.T @ a + b @ b.T @ true)
    return gradient - (SCALING * true @ a.T) @ (SCALING * b.T @ true) if quadratic else gradient


@cache
def gradients(name: str) -> Gradients:
    model, graph = worn(name)
    twin = materialised(exact(model), exact(zoo.build(name)), weights_of(graph))
    backward(model, name)
    backward(twin, name)
    return Gradients(model, twin, graph)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.form}-{o.normalise}-{o.quadratic}")
@pytest.mark.parametrize("name", FAMILIES)
def test_unit_scores_equal_dense_autograd(name: str, options: ImportanceOptions) -> None:
    reference = gradients(name)
    found = score(reference.graph, dict(projections(reference.model, reference.graph)), options)
    assert set(found) == set(reference.graph.by_name)
    for dimension in reference.graph.dimensions:
        assert relative(found[dimension.name], reference.unit_scores(dimension, options)) < 1e-5


def test_scores_through_the_fast_kernels_of_experts_are_the_same_to_rounding() -> None:
    model, graph = worn("mixtral")
    assert model.get_base_model().config._experts_implementation == "grouped_mm"
    backward(model, "mixtral")
    expected = score(graph, dict(projections(gradients("mixtral").model, graph)), PLAIN)
    for name, scores in score(graph, dict(projections(model, graph)), PLAIN).items():
        assert relative(scores, expected[name]) < 1e-4


def test_the_options_change_the_scores() -> None:
    reference = gradients("llama")
    dimension = reference.graph.by_name["layers.0.kv_groups"]
    found = [reference.unit_scores(dimension, options) for options in OPTIONS]
    assert all(relative(a, b) > 1e-3 for a, b in itertools.combinations(found, 2))


@pytest.mark.parametrize("quadratic", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_adapter_gradients_are_a_projection_of_the_true_gradient(name: str, quadratic: bool) -> None:
    reference = gradients(name)
    found = dict(projections(reference.model, reference.graph))
    assert set(found) == {part.parameter for d in reference.graph.dimensions for part in d.weights}
    everything = slice(None), slice(None)
    for parameter, projection in found.items():
        assert projection.scaling == SCALING
        actual = projection.gradient(everything, quadratic=quadratic)
        expected = reference.surrogate(parameter, quadratic=quadratic)
        assert relative(actual, expected if expected.dim() == 3 else expected[None]) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_the_merged_weight_is_the_dense_one_and_peft_s(name: str) -> None:
    reference = gradients(name)
    everything = slice(None), slice(None)
    layers = lora_layers(reference.model)
    for parameter, projection in projections(reference.model, reference.graph):
        expected = reference.twin.get_parameter(parameter)
        merged = projection.merged(everything)
        assert relative(merged, expected if expected.dim() == 3 else expected[None]) < 1e-6
        layer = layers.get(parameter) or layers[parameter.removesuffix(".weight")]
        delta = merged - projection.weight if projection.weight.dim() == 3 else merged[0] - projection.weight
        assert relative(delta, layer.get_delta_weight("default")) < 1e-5


@pytest.mark.parametrize("elements_at_once", [1, 100, 32 * 7, 32 * 200])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_scores_do_not_depend_on_the_window(name: str, monkeypatch: pytest.MonkeyPatch, elements_at_once: int) -> None:
    options, reference = ImportanceOptions(quadratic=True), gradients(name)
    found = dict(projections(reference.model, reference.graph))
    whole = score(reference.graph, found, options)
    monkeypatch.setattr(low_rank, "HOST_ELEMENTS", elements_at_once)
    for dimension, scores in score(reference.graph, found, options).items():
        assert relative(scores, whole[dimension]) < 1e-6


@pytest.mark.parametrize(("name", "entries", "shape"), [("gpt2", 1, (32, 96)), ("mixtral", 4, (128, 32))])
def test_each_window_is_scored_once_however_many_dimensions_share_the_weight(
    name: str, entries: int, shape: tuple[int, int]
) -> None:
    reference, seen = gradients(name), {}

    def count(weight: Projection, window: Window) -> torch.Tensor:
        scores = importance.importance(weight, window, PLAIN)
        seen[weight.weight.data_ptr()] = seen.get(weight.weight.data_ptr(), 0) + scores.numel()
        return scores

    found = dict(projections(reference.model, reference.graph))
    unit_scores(reference.graph, found, partial(axis_sums, elements=count))
    assert all(seen[p.weight.data_ptr()] == p.weight.numel() for p in found.values())
    assert entries * shape[0] * shape[1] in seen.values()


def test_fused_layouts_give_each_unit_its_own_indices() -> None:
    """GPT-2's c_attn [in, out] of 8 heads of 4, and Phi-3's qkv of 4 groups: 2 query heads, a key and a value each."""
    sums = AxisSums(torch.zeros(1, 2), torch.arange(96.0)[None], stacked=False)
    gpt2 = Slice("c_attn.weight", 1, ((0, 4), (32, 4), (64, 4)), Role.PRODUCE)
    first = 0 + 1 + 2 + 3 + 32 + 33 + 34 + 35 + 64 + 65 + 66 + 67
    assert sums.per_unit(gpt2, 8).tolist() == [first + 48 * unit for unit in range(8)]
    phi3 = Slice("qkv_proj.weight", 0, ((0, 8), (32, 4), (48, 4)), Role.PRODUCE)
    sums = AxisSums(torch.arange(64.0)[None], torch.zeros(1, 2), stacked=False)
    last = sum(range(24, 32)) + sum(range(44, 48)) + sum(range(60, 64))
    assert sums.per_unit(phi3, 4)[3] == last


def test_indices_that_no_unit_owns_are_left_out() -> None:
    sums = AxisSums(torch.tensor([[1.0, 2, 4, 8, 16, 32]]), torch.zeros(1, 2), stacked=False)
    assert sums.per_unit(Slice("w.weight", 0, ((1, 2),), Role.PRODUCE), 2).tolist() == [6, 24]


def test_a_stack_gives_experts_rows_and_columns() -> None:
    scores = torch.arange(24.0).view(2, 3, 4)
    sums = axis_sums(DenseWeight(scores), lambda weight, window: weight.merged(window))
    assert sums.per_unit(Slice("w", 0, role=Role.OWN), 2).tolist() == [scores[0].sum(), scores[1].sum()]
    assert sums.per_unit(Slice("w", 1, role=Role.PRODUCE, at=1), 3).tolist() == scores[1].sum(1).tolist()
    assert sums.per_unit(Slice("w", 2, role=Role.CONSUME, at=0), 4).tolist() == scores[0].sum(0).tolist()
    assert sums.per_unit(Slice("w", 2, role=Role.CONSUME), 4).tolist() == scores.sum((0, 1)).tolist()


def test_smoothing_unit_scores_equals_smoothing_weight_scores() -> None:
    options = ImportanceOptions(normalise=False, smoothing=0.7)
    model, graph = worn("llama")
    reference = Gradients(model, materialised(exact(model), exact(zoo.build("llama")), weights_of(graph)), graph)
    average = MovingAverage(graph, options.smoothing)
    names = [f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    weights = {name: torch.zeros_like(reference.twin.get_parameter(name)) for name in names}
    for seed in (1, 2, 3):
        backward(model, "llama", seed)
        backward(reference.twin, "llama", seed)
        average.update(score(graph, dict(projections(model, graph)), options))
        for name in names:
            weights[name] = 0.7 * weights[name] + 0.3 * reference.weight_scores(name, options)
    gate, up, down = (weights[name] for name in names)
    assert relative(average.scores["layers.1.mlp_channels"], gate.sum(1) + up.sum(1) + down.sum(0)) < 1e-5


def test_only_weights_with_lora_contribute() -> None:
    base = zoo.build("llama")
    graph = graph_of("llama", base)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules=["v_proj", "down_proj"]))
    backward(model, "llama")
    found = dict(projections(model, graph))
    assert {name.split(".")[-2] for name in found} == {"v_proj", "down_proj"}
    name = "model.layers.0.self_attn.v_proj.weight"
    whole = importance.importance(found[name], (slice(None), slice(None)), PLAIN)[0]
    expected = torch.stack([whole[8 * unit : 8 * unit + 8].sum() for unit in range(4)])
    assert relative(score(graph, found, PLAIN)["layers.0.kv_groups"], expected) < 1e-6


def test_a_dense_weight_is_scored_by_its_own_gradient_and_stays_as_it_is() -> None:
    weight, gradient = torch.randn(6, 4), torch.randn(6, 4)
    part = Slice("w.weight", 1, ((0, 2),), Role.CONSUME)
    graph = PruningGraph(
        family="one",
        dtype=torch.float32,
        shapes={"w.weight": (6, 4)},
        matmuls=(),
        dimensions=(Dimension("d", Kind.MLP_CHANNELS, 0, 2, (part,), "d"),),
        widths=(),
        untouched={},
    )
    before = weight.clone(), gradient.clone()
    for form, expected in (("square", (weight * gradient) ** 2), ("abs", (weight * gradient).abs())):
        options = ImportanceOptions(form=form, normalise=False, quadratic=True)
        actual = score(graph, {"w.weight": DenseWeight(weight, gradient)}, options)["d"]
        assert relative(actual, torch.stack([expected[:, :2].sum(), expected[:, 2:].sum()])) < 1e-6
    assert torch.equal(weight, before[0])
    assert torch.equal(gradient, before[1])


def test_without_gradients_there_are_no_scores() -> None:
    adapted = next(iter(lora_weights(worn("gpt2")[0]).values()))
    for weight in (adapted, DenseWeight(torch.ones(2, 2))):
        with pytest.raises(RuntimeError, match="after the backward pass"):
            importance.importance(weight, (slice(None), slice(None)), PLAIN)


@pytest.mark.parametrize("wrong", [{"form": "cube"}, {"smoothing": 1.0}, {"smoothing": -0.1}])
def test_impossible_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=str(next(iter(wrong.values())))):
        ImportanceOptions(**wrong)
