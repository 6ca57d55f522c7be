"""Criteria that read true gradients, against autograd on a dense twin, its units summed by plain loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import zoo
from criteria_workbench import PLAIN, ROWS, Batch, batch_of, by_hand, row_of, some_masks, twin_of
from handmade import by_loops, exact, graph_of, relative, weights_of, worn
from peft import PeftModel
from transformers import PreTrainedModel

from passes.criteria import Criterion, make_criterion
from passes.graph import Dimension
from passes.models import masked
from passes.options import ImportanceOptions


def loops(dimension: Dimension, scores: Callable[[str], torch.Tensor], *, normalise: bool) -> torch.Tensor:
    total = torch.zeros(dimension.size, dtype=torch.float64)
    for part in dimension.weights:
        vector = by_loops(scores(part.parameter), part, dimension.size)
        total += vector / vector.norm() if normalise else vector
    return total


def observed(criterion: Criterion, model: PeftModel | PreTrainedModel, batches: list[Batch]) -> Criterion:
    criterion.begin(model)
    for batch in batches:
        (model(**batch).loss / len(batches)).backward()
    assert criterion.observe(model)
    criterion.end(model)
    return criterion


@pytest.mark.parametrize("under_masks", [False, True])
@pytest.mark.parametrize(("form", "normalise"), [("square", False), ("square", True), ("abs", False)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_taylor_is_the_true_gradient_times_the_weight(name: str, form: str, normalise: bool, under_masks: bool) -> None:
    model, twin, graph = twin_of(name)
    masks = some_masks(graph) if under_masks else {d.name: torch.ones(d.size, dtype=bool) for d in graph.dimensions}
    options = ImportanceOptions(form=form, normalise=normalise, smoothing=0.0)
    batch = batch_of(name)
    with masked(model, graph, masks):
        criterion = observed(make_criterion("taylor", graph, options, 0), model, [row_of(batch, 0), row_of(batch, 1)])
    with by_hand(twin, graph, {key: mask.double() for key, mask in masks.items()}):
        for row in (0, 1):
            (twin(**row_of(batch, row)).loss / 2).backward()

    def scores(parameter: str) -> torch.Tensor:
        weight = twin.get_parameter(parameter)
        product = weight.grad * weight.detach()
        return product**2 if form == "square" else product.abs()

    for dimension in graph.dimensions:
        assert relative(criterion.scores[dimension.name], loops(dimension, scores, normalise=normalise)) < 1e-5


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_fisher_is_half_the_mean_of_the_squares_over_backward_passes(name: str, normalise: bool) -> None:
    model, twin, graph = twin_of(name)
    batch, options = batch_of(name), ImportanceOptions(normalise=normalise, smoothing=0.0)
    rows = [row_of(batch, row) for row in range(ROWS)]
    criterion = observed(make_criterion("fisher", graph, options, 0), model, rows)
    squares = dict.fromkeys(weights_of(graph), 0.0)
    for row in rows:
        twin.zero_grad()
        twin(**row).loss.backward()
        for parameter in squares:
            squares[parameter] = squares[parameter] + twin.get_parameter(parameter).grad ** 2 / ROWS

    def scores(parameter: str) -> torch.Tensor:
        return 0.5 * twin.get_parameter(parameter).detach() ** 2 * squares[parameter]

    for dimension in graph.dimensions:
        assert relative(criterion.scores[dimension.name], loops(dimension, scores, normalise=normalise)) < 1e-5


def test_fisher_keeps_no_gradient_of_a_base_weight() -> None:
    model, graph = worn("llama")
    criterion = make_criterion("fisher", graph, PLAIN, 0)
    criterion.begin(model)
    model(**batch_of("llama")).loss.backward()
    base = [p for key, p in model.named_parameters() if ".lora_" not in key]
    assert any(p.requires_grad for p in base)
    assert all(p.grad is None for p in base)
    criterion.end(model)
    assert not any(p.requires_grad for p in base)
    model(**batch_of("llama")).loss.backward()
    with pytest.raises(RuntimeError, match="call begin"):
        criterion.observe(model)


@pytest.mark.parametrize("under_masks", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_mask_fisher_is_the_mean_square_of_each_sequence_s_own_derivative(name: str, under_masks: bool) -> None:
    """Each row goes alone through the dense twin, whose units are multiplied by a mask variable."""
    model, twin, graph = twin_of(name)
    batch = batch_of(name, padded=False)
    masks = some_masks(graph) if under_masks else {d.name: torch.ones(d.size, dtype=bool) for d in graph.dimensions}
    with masked(model, graph, masks):
        criterion = observed(make_criterion("mask-fisher", graph, PLAIN, 0), model, [batch])
    expected = {d.name: torch.zeros(d.size, dtype=torch.float64) for d in graph.dimensions}
    for row in range(ROWS):
        variables = {key: mask.double().requires_grad_() for key, mask in masks.items()}
        with by_hand(twin, graph, variables):
            twin(**row_of(batch, row)).loss.backward()
        for key, variable in variables.items():
            expected[key] += variable.grad**2 / ROWS
    for key, score in expected.items():
        assert relative(criterion.scores[key], score) < 1e-5
        assert (criterion.scores[key][~masks[key]] > 0).all()


@pytest.mark.parametrize("name", ["llama", "bert", "llama-sequence-classification", "t5"])
def test_mask_fisher_counts_a_padded_row_by_its_share_of_the_loss(name: str) -> None:
    model, graph = exact(zoo.build(name)), graph_of(name, zoo.build(name))
    batch = batch_of(name)
    variables = {d.name: torch.ones(ROWS, d.size, dtype=torch.float64).requires_grad_() for d in graph.dimensions}
    with by_hand(model, graph, variables):
        model(**batch).loss.backward()
    criterion = observed(make_criterion("mask-fisher", graph, PLAIN, 0), model, [batch])
    for key, variable in variables.items():
        assert relative(criterion.scores[key], ROWS * (variable.grad**2).sum(0)) < 1e-5


def test_mask_fisher_does_not_depend_on_the_batches() -> None:
    model, graph = worn("llama")
    batch = batch_of("llama", padded=False)
    whole = observed(make_criterion("mask-fisher", graph, PLAIN, 0), model, [batch])
    single = observed(
        make_criterion("mask-fisher", graph, PLAIN, 0), model, [row_of(batch, row) for row in range(ROWS)]
    )
    for key, score in whole.scores.items():
        assert relative(single.scores[key], score) < 1e-5


def test_mask_fisher_needs_no_weight_that_asks_for_gradients_and_changes_no_output() -> None:
    model = zoo.build("llama").requires_grad_(False)
    graph, batch = graph_of("llama", model), batch_of("llama")
    before = model(**batch).logits
    criterion = make_criterion("mask-fisher", graph, PLAIN, 0)
    criterion.begin(model)
    output = model(**batch)
    assert torch.equal(output.logits, before)
    output.loss.backward()
    assert criterion.observe(model)
    criterion.end(model)
    assert all(p.grad is None for p in model.parameters())
    assert not model._forward_pre_hooks
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "mask-fisher"])
def test_the_scale_of_the_loss_does_not_matter(criterion: str) -> None:
    found = []
    for scale in (1.0, 1024.0):
        model, graph = worn("llama")
        made = make_criterion(criterion, graph, PLAIN, 0)
        made.begin(model)
        (scale * model(**batch_of("llama")).loss).backward()
        assert made.observe(model, loss_scale=scale)
        found.append(made.scores["layers.0.mlp_channels"].clone())
    assert relative(found[1], found[0]) < 1e-5


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "mask-fisher"])
def test_scores_are_averaged_over_steps_and_a_step_that_is_not_finite_is_left_out(criterion: str) -> None:
    model, graph = worn("llama")
    smooth, batch = ImportanceOptions(normalise=False, smoothing=0.75), batch_of("llama")
    alone = observed(make_criterion(criterion, graph, PLAIN, 0), model, [batch])
    made = make_criterion(criterion, graph, smooth, 0)
    made.begin(model)
    for step in range(3):
        model(**batch).loss.mul(float("nan") if step == 1 else 1).backward()
        assert made.observe(model) == (step != 1)
    for key, score in alone.scores.items():
        assert relative(made.scores[key], (1 - 0.75**2) * score) < 1e-5


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "mask-fisher"])
def test_observing_before_anything_was_seen_is_an_error(criterion: str) -> None:
    model, graph = worn("llama")
    with pytest.raises(RuntimeError, match=r"call begin\(\) before the first forward pass"):
        make_criterion(criterion, graph, PLAIN, 0).observe(model)
