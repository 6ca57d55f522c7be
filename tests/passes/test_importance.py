from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from workbench import PROJECTIONS, Blocks, adapted, backward, build_model, dense_twin, relative, unit_indices

from passes import importance
from passes.adapter import lora_layers, projections
from passes.errors import OptionError
from passes.graph import PruningGraph
from passes.importance import ImportanceOptions, MovingAverage, axis_scores, unit_scores

SIZES = {"kv_groups": 4, "mlp_channels": 64}
KINDS = {name: "kv_groups" if "_proj" in name and name[0] in "qkvo" else "mlp_channels" for name in PROJECTIONS}
OPTIONS = [
    ImportanceOptions(form=form, normalise=normalise, quadratic=quadratic)
    for form, normalise, quadratic in itertools.product(("square", "abs"), (True, False), (True, False))
]


@dataclass(frozen=True)
class Gradients:
    """An adapted model after a backward pass, and its dense twin after its own."""

    model: PeftModel
    twin: PreTrainedModel
    graph: PruningGraph

    def weight_scores(self, name: str, options: ImportanceOptions) -> torch.Tensor:
        """The formula from the true gradient of the dense weight alone, in double precision."""
        layer, dense = lora_layers(self.model)[name], self.twin.get_submodule(name).weight
        a, b = (part["default"].weight.detach().double() for part in (layer.lora_A, layer.lora_B))
        s, true = layer.scaling["default"], dense.grad.double()
        gradient = s * (true @ a.T @ a + b @ b.T @ true)
        if options.quadratic:
            gradient = gradient - (s * true @ a.T) @ (s * b.T @ true)
        score = gradient * dense.detach().double()
        return score**2 if options.form == "square" else score.abs()

    def unit_scores(self, dimension: str, options: ImportanceOptions) -> torch.Tensor:
        """Weight scores summed by plain loops over the units of every projection of a dimension."""
        _, layer, kind = dimension.split(".")
        total = torch.zeros(SIZES[kind], dtype=torch.float64)
        for projection in (name for name, owner in KINDS.items() if owner == kind):
            block = "self_attn" if kind == "kv_groups" else "mlp"
            scores = self.weight_scores(f"model.layers.{layer}.{block}.{projection}", options)
            consuming = projection in ("o_proj", "down_proj")
            units = []
            for unit in range(SIZES[kind]):
                indices = unit_indices(self.twin.config, projection, unit)
                units.append(sum((scores[:, i] if consuming else scores[i, :]).sum() for i in indices))
            vector = torch.stack(units)
            total += vector / vector.norm() if options.normalise else vector
        return total


@pytest.fixture(scope="module")
def gradients() -> Gradients:
    program = adapted(build_model("llama", attention_bias=True, mlp_bias=True))
    model = program.model.double()
    twin = dense_twin(model, build_model("llama", attention_bias=True, mlp_bias=True).double())
    ids = Blocks(4).ids
    backward(model, ids)
    backward(twin, ids)
    return Gradients(model, twin, program.traced)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.form}-{o.normalise}-{o.quadratic}")
def test_unit_scores_equal_dense_autograd(gradients: Gradients, options: ImportanceOptions) -> None:
    found = dict(projections(gradients.model, gradients.graph))
    for dimension in gradients.graph.dimensions:
        actual = unit_scores(dimension, found, options)
        assert relative(actual, gradients.unit_scores(dimension.name, options)) < 1e-5


def test_the_options_change_the_scores(gradients: Gradients) -> None:
    name = "layers.0.kv_groups"
    found = [gradients.unit_scores(name, options) for options in OPTIONS]
    assert all(relative(a, b) > 1e-3 for a, b in itertools.combinations(found, 2))


def test_adapter_gradients_are_a_projection_of_the_true_gradient(gradients: Gradients) -> None:
    for name, projection in projections(gradients.model, gradients.graph):
        true = gradients.twin.get_submodule(name).weight.grad
        a, b, s = projection.a, projection.b, projection.scaling
        assert s == 3
        left = projection.grad_b @ a + b @ projection.grad_a
        assert relative(left, s * (true @ a.T @ a + b @ b.T @ true)) < 1e-5


@pytest.mark.parametrize("elements", [1, 100, 33 * 7])
def test_scores_do_not_depend_on_row_blocks(
    gradients: Gradients, monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    options = ImportanceOptions(quadratic=True)
    found = dict(projections(gradients.model, gradients.graph))
    whole = {(name, axis): axis_scores(p, axis, options) for name, p in found.items() for axis in (0, 1)}
    monkeypatch.setattr(importance, "ROW_BLOCK_ELEMENTS", elements)
    for (name, axis), expected in whole.items():
        assert relative(axis_scores(found[name], axis, options), expected) < 1e-6


def test_smoothing_unit_scores_equals_smoothing_weight_scores(gradients: Gradients) -> None:
    options = ImportanceOptions(normalise=False, smoothing=0.7)
    average = MovingAverage(gradients.graph, options.smoothing)
    names = {name for name, _ in projections(gradients.model, gradients.graph)}
    weights = {name: torch.zeros_like(gradients.twin.get_submodule(name).weight) for name in names}
    for seed in (1, 2, 3):
        ids = Blocks(2, seed=seed).ids
        backward(gradients.model, ids)
        backward(gradients.twin, ids)
        found = dict(projections(gradients.model, gradients.graph))
        average.update({d.name: unit_scores(d, found, options) for d in gradients.graph.dimensions})
        for name in names:
            weights[name] = 0.7 * weights[name] + 0.3 * gradients.weight_scores(name, options)
    gates = [weights[f"model.layers.1.mlp.{name}"] for name in ("gate_proj", "up_proj", "down_proj")]
    expected = gates[0].sum(1) + gates[1].sum(1) + gates[2].sum(0)
    assert relative(average.scores["layers.1.mlp_channels"], expected) < 1e-5


def test_only_projections_with_lora_contribute() -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj", "down_proj"])
    model = get_peft_model(build_model("llama"), config)
    graph = adapted(build_model("llama")).traced
    backward(model, Blocks(2).ids)
    found = dict(projections(model, graph))
    assert {name.rpartition(".")[2] for name in found} == {"v_proj", "down_proj"}
    options = ImportanceOptions(normalise=False)
    values = axis_scores(found["model.layers.0.self_attn.v_proj"], 0, options)
    expected = torch.stack([values[8 * unit : 8 * unit + 8].sum() for unit in range(4)])
    assert relative(unit_scores(graph.by_name["layers.0.kv_groups"], found, options), expected) < 1e-6


@pytest.mark.parametrize("wrong", [{"form": "cube"}, {"smoothing": 1.0}, {"smoothing": -0.1}])
def test_impossible_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=str(next(iter(wrong.values())))):
        ImportanceOptions(**wrong)
