"""Criteria that read activations, against inputs recorded by hand and formulas written out."""

from __future__ import annotations

import pytest
import torch
import zoo
from criteria_workbench import PLAIN, Batch, batch_of, by_hand, row_of, some_masks, twin_of
from handmade import exact, graph_of, relative, worn
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from passes.criteria import Criterion, make_criterion
from passes.criteria.inputs import Moments
from passes.errors import DataError, UnsupportedModelError
from passes.graph import PruningGraph, Role
from passes.models import masked
from passes.options import ImportanceOptions

STANDARD = ImportanceOptions(normalise=True, smoothing=0.0)


@torch.no_grad()
def observed(criterion: Criterion, model: PeftModel | PreTrainedModel, batches: list[Batch]) -> Criterion:
    criterion.begin(model)
    for batch in batches:
        model(**batch)
    assert criterion.observe(model)
    criterion.end(model)
    return criterion


@torch.no_grad()
def recorded(
    model: PreTrainedModel, graph: PruningGraph, batch: Batch, real: torch.Tensor, factors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the consuming projections read where ``real`` [rows, tokens], [tokens, width], before any factor."""
    found, handles = {}, []
    for dimension in graph.dimensions:
        for part in dimension.of_role(Role.CONSUME):
            module = model.get_submodule(part.module)
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, inputs, name=part.parameter: found.update(
                        {name: inputs[0].reshape(*real.shape, -1)[real]}
                    )
                )
            )
    with by_hand(model, graph, factors):
        model(**batch)
    for handle in handles:
        handle.remove()
    return found


def columns_of(model: PreTrainedModel, parameter: str) -> torch.Tensor:
    """The weight as [out, in]."""
    weight = model.get_parameter(parameter).detach()
    return weight.T if isinstance(model.get_submodule(parameter.rpartition(".")[0]), Conv1D) else weight


def wanda(weight: torch.Tensor, inputs: torch.Tensor, units: list[list[int]]) -> list[float]:
    norms = [float(inputs[:, j].norm()) / len(inputs) ** 0.5 for j in range(inputs.shape[1])]
    return [sum(float(weight[:, j].abs().sum()) * norms[j] for j in unit) for unit in units]


def flap(weight: torch.Tensor, inputs: torch.Tensor, units: list[list[int]], *, standard: bool) -> list[float]:
    scores = inputs.var(0) * weight.norm(dim=0) ** 2
    if standard:
        scores = (scores - scores.mean()) / scores.std()
    return [float(sum(scores[j] for j in unit)) / len(unit) for unit in units]


def expected_scores(
    criterion: str, options: ImportanceOptions, model: PreTrainedModel, graph: PruningGraph, seen: dict
) -> dict[str, torch.Tensor]:
    found = {}
    for dimension in graph.dimensions:
        total = torch.zeros(dimension.size, dtype=torch.float64)
        for part in dimension.of_role(Role.CONSUME):
            units = [part.indices([unit]) for unit in range(dimension.size)]
            weight, inputs = columns_of(model, part.parameter), seen[part.parameter]
            total += torch.tensor(
                wanda(weight, inputs, units)
                if criterion == "wanda"
                else flap(weight, inputs, units, standard=options.normalise),
                dtype=torch.float64,
            )
        found[dimension.name] = total
    if criterion == "flap" and options.normalise:
        lowest = min(float(score.min()) for score in found.values())
        found = {name: score - lowest for name, score in found.items()}
    return found


@pytest.mark.parametrize("under_masks", [False, True])
@pytest.mark.parametrize(("criterion", "options"), [("wanda", PLAIN), ("flap", PLAIN), ("flap", STANDARD)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "bert"])
def test_scores_are_the_formula_over_real_tokens(
    name: str, criterion: str, options: ImportanceOptions, under_masks: bool
) -> None:
    model, twin, graph = twin_of(name)
    masks = some_masks(graph) if under_masks else {d.name: torch.ones(d.size, dtype=bool) for d in graph.dimensions}
    batch = batch_of(name)
    with masked(model, graph, masks):
        made = observed(make_criterion(criterion, graph, options, 0), model, [row_of(batch, row) for row in range(3)])
    factors = {key: mask.double() for key, mask in masks.items()}
    seen = recorded(twin, graph, batch, batch["attention_mask"].bool(), factors)
    for key, score in expected_scores(criterion, options, twin, graph, seen).items():
        assert relative(made.scores[key], score) < 1e-5
        assert made.scores[key].min() >= 0


def test_flap_standardises_each_layer_and_kind_and_subtracts_the_lowest() -> None:
    model, graph = worn("llama")
    scores = observed(make_criterion("flap", graph, STANDARD, 0), model, [batch_of("llama")]).scores
    assert min(float(score.min()) for score in scores.values()) == 0
    for layer in range(2):
        channels, groups = (scores[f"layers.{layer}.{kind}"] for kind in ("mlp_channels", "kv_groups"))
        assert float(channels.std()) == pytest.approx(1, rel=1e-5)
        assert float(channels.mean()) == pytest.approx(float(groups.mean()), rel=1e-4)


@pytest.mark.parametrize("form", ["mask", "labels"])
def test_the_padding_of_a_decoder_is_its_own(form: str) -> None:
    """Source and target may have the same shape, but never the same padding."""
    model = exact(zoo.build("t5"))
    graph, batch = graph_of("t5", model), batch_of("t5")
    batch["decoder_input_ids"] = torch.cat([batch["decoder_input_ids"]] * 2, 1)[:, :12]
    batch["labels"] = torch.cat([batch["labels"]] * 2, 1)[:, :12].contiguous()
    assert batch["decoder_input_ids"].shape == batch["attention_mask"].shape
    real = torch.ones(3, 12, dtype=bool)
    real[0, 7:] = False
    if form == "mask":
        batch["decoder_attention_mask"] = real.long()
    else:
        batch["labels"] = batch["labels"].masked_fill(~real, -100)
    made = observed(make_criterion("wanda", graph, PLAIN, 0), model, [batch])
    ones = {d.name: torch.ones(d.size, dtype=torch.float64) for d in graph.dimensions}
    seen = recorded(model, graph, batch, real, ones)
    for key, score in expected_scores("wanda", PLAIN, model, graph, seen).items():
        assert relative(made.scores[key], score) < 1e-5


@pytest.mark.parametrize("criterion", ["wanda", "flap"])
def test_steps_are_averaged_and_nothing_else_is_kept(criterion: str) -> None:
    model, graph = worn("llama")
    batches = [row_of(batch_of("llama"), row) for row in range(2)]
    single = [observed(make_criterion(criterion, graph, PLAIN, 0), model, [batch]).scores for batch in batches]
    made = make_criterion(criterion, graph, ImportanceOptions(normalise=False, smoothing=0.75), 0)
    made.begin(model)
    for batch in batches:
        model(**batch)
        assert made.observe(model)
    for key, score in made.scores.items():
        assert relative(score, 0.75 * 0.25 * single[0][key] + 0.25 * single[1][key]) < 1e-5
    with pytest.raises(RuntimeError, match="nothing was seen"):
        made.observe(model)


def test_an_activation_that_is_not_finite_leaves_the_average_alone() -> None:
    model, graph = worn("llama")
    criterion = make_criterion("wanda", graph, PLAIN, 0)
    criterion.begin(model)
    with torch.no_grad():
        model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight[0, 0] = float("inf")
    model(**batch_of("llama"))
    assert not criterion.observe(model)
    assert not any(score.any() for score in criterion.scores.values())


def test_ending_takes_all_hooks_off_and_may_be_done_twice() -> None:
    model, graph = worn("llama")
    criterion = make_criterion("flap", graph, PLAIN, 0)
    criterion.begin(model)
    model(**batch_of("llama"))
    for _ in range(2):
        criterion.end(model)
        assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("criterion", ["wanda", "flap", "mask-fisher", "obs"])
def test_experts_in_a_stack_are_refused_with_what_to_choose_instead(criterion: str) -> None:
    graph = graph_of("mixtral", zoo.build("mixtral"))
    with pytest.raises(UnsupportedModelError, match=r"experts\.0\.channels lie inside a stack.*choose.*taylor"):
        make_criterion(criterion, graph, PLAIN, 0)


def test_a_mask_of_another_shape_is_refused() -> None:
    model, graph = worn("llama")
    criterion = make_criterion("wanda", graph, PLAIN, 0)
    criterion.begin(model)
    batch = batch_of("llama")
    mask = torch.ones(3, 1, 12, 12, dtype=torch.bool).tril()
    with pytest.raises(DataError, match=r"mask has \[3, 1, 12, 12\]"):
        model(input_ids=batch["input_ids"], attention_mask=mask)


def test_moments_of_batches_are_those_of_all_values() -> None:
    values = 1000 + torch.randn(50, 7, generator=torch.Generator().manual_seed(1))
    moments = Moments.of(values[:1])
    for start, end in ((1, 1), (1, 20), (20, 21), (21, 50)):
        moments.add(values[start:end])
    assert relative(moments.mean, values.double().mean(0)) < 1e-6
    assert relative(moments.variance, values.double().var(0)) < 1e-4
    assert relative(moments.mean_square, values.double().square().mean(0)) < 1e-6
