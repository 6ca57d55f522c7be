"""OBS, against Hessians made from recorded inputs and gradients, and Schur complements from the start at each turn."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import zoo
from criteria_workbench import PLAIN, Batch, batch_of, by_hand, row_of, some_masks, twin_of
from handmade import graph_of, relative, worn
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from passes.algebra import gram
from passes.criteria import make_criterion
from passes.criteria.obs import RIDGE
from passes.graph import PruningGraph, Role
from passes.models import masked

Seen = dict[str, tuple[torch.Tensor, torch.Tensor]]


def scored(model: nn.Module, graph: PruningGraph, batches: list[Batch], scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The scores after one backward pass a batch of a loss that is their mean."""
    criterion = make_criterion("obs", graph, PLAIN, 0)
    criterion.begin(model)
    for batch in batches:
        (scale * model(**batch).loss / len(batches)).backward()
    assert criterion.observe(model, scale)
    criterion.end(model)
    return criterion.scores


def recorded(model: PreTrainedModel, graph: PruningGraph, batch: Batch, factors: dict[str, torch.Tensor]) -> Seen:
    """What the consuming projections read, [real tokens, inputs], and the gradients of what they give."""
    real, found, outputs, handles = batch["attention_mask"].bool(), {}, {}, []

    def after(_, inputs, output, name):
        found[name], outputs[name] = inputs[0].detach().reshape(*real.shape, -1)[real], output
        output.retain_grad()

    with by_hand(model, graph, factors):
        for dimension in graph.dimensions:
            for part in dimension.of_role(Role.CONSUME):
                module = model.get_submodule(part.module)
                handles.append(module.register_forward_hook(partial(after, name=part.module)))
        model(**batch).loss.backward()
    for handle in handles:
        handle.remove()
    return {name: (found[name], outputs[name].grad.flatten(0, -2)) for name in found}


def damped(matrix: torch.Tensor) -> torch.Tensor:
    return matrix + RIDGE * matrix.diagonal().mean() * torch.eye(len(matrix))


def in_turn(hessian: torch.Tensor, weight: torch.Tensor, fisher: torch.Tensor, units: list[list[int]]) -> torch.Tensor:
    """What each unit adds at its turn to the error of all that are gone; no less than the one before it."""

    def left_by(gone: list[int]) -> float:
        rows = [j for unit in gone for j in units[unit]]
        stay = [j for j in range(len(hessian)) if j not in rows]
        across = hessian[rows][:, stay]
        schur = hessian[rows][:, rows] - across @ torch.linalg.solve(hessian[stay][:, stay], across.T)
        return 0.5 * float(torch.trace(weight[rows].T @ schur @ weight[rows] @ fisher))

    gone: list[int] = []
    scores, so_far = torch.zeros(len(units), dtype=torch.float64), 0.0
    while len(gone) < len(units):
        tried = {unit: left_by([*gone, unit]) for unit in range(len(units)) if unit not in gone}
        unit = min(tried, key=lambda each: tried[each])
        scores[unit], so_far = max(tried[unit] - so_far, float(scores.max())), tried[unit]
        gone.append(unit)
    return scores


@pytest.mark.parametrize("under_masks", [False, True])
@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(name, marks=pytest.mark.matrix) for name in ("gpt2", "phi3")), "falcon-mqa"]
)
def test_scores_are_the_loss_left_behind_in_turn(name: str, under_masks: bool) -> None:
    model, twin, graph = twin_of(name)
    masks = some_masks(graph) if under_masks else {d.name: torch.ones(d.size, dtype=bool) for d in graph.dimensions}
    batch = batch_of(name)
    with masked(model, graph, masks):
        made = scored(model, graph, [batch])
    seen = recorded(twin, graph, batch, {key: mask.double() for key, mask in masks.items()})
    for dimension in graph.dimensions:
        (part,) = dimension.of_role(Role.CONSUME)
        (inputs, gradients), module = seen[part.module], twin.get_submodule(part.module)
        weight = module.weight.detach() if isinstance(module, Conv1D) else module.weight.detach().T
        inputs = inputs - inputs.mean(0) if module.bias is not None else inputs
        hessian, fisher = damped(inputs.T @ inputs / len(inputs)), damped(len(inputs) * gradients.T @ gradients)
        expected = in_turn(hessian, weight, fisher, [part.indices([unit]) for unit in range(dimension.size)])
        expected = expected * masks[dimension.name]
        assert relative(made[dimension.name], expected) < 1e-4
        assert len(made[dimension.name].unique()) == min(dimension.size, int(masks[dimension.name].sum()) + 1)


def test_batches_of_a_step_are_those_of_one_batch_and_the_loss_scale_goes_out() -> None:
    model, graph = worn("llama")
    batch = batch_of("llama", padded=False)
    whole = scored(model, graph, [batch])
    parts = scored(model, graph, [row_of(batch, row) for row in range(3)], scale=256.0)
    for key, score in whole.items():
        assert relative(parts[key], score) < 1e-3


def test_a_step_without_a_backward_pass_is_refused() -> None:
    model, graph = worn("llama")
    criterion = make_criterion("obs", graph, PLAIN, 0)
    criterion.begin(model)
    model(**batch_of("llama"))
    with pytest.raises(RuntimeError, match=r"no gradient was seen of .*after the backward pass"):
        criterion.observe(model)


def test_what_is_not_finite_leaves_the_average_alone_and_the_hooks_come_off() -> None:
    model, graph = worn("llama")
    criterion = make_criterion("obs", graph, PLAIN, 0)
    criterion.begin(model)
    with torch.no_grad():
        model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight[0, 0] = float("inf")
    model(**batch_of("llama")).loss.backward()
    assert not criterion.observe(model)
    assert not any(score.any() for score in criterion.scores.values())
    for _ in range(2):
        criterion.end(model)
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "falcon-mqa"])
def test_weights_may_be_frozen(name: str) -> None:
    """Falcon adds attention's output to the MLP's in place, so what is watched must bear being written to."""
    model = zoo.build(name)
    graph = graph_of(name, model)
    open_scores = scored(model, graph, [batch_of(name)])
    model.requires_grad_(False)
    for key, score in scored(model, graph, [batch_of(name)]).items():
        assert relative(score, open_scores[key]) < 1e-5


def test_sums_in_fp32_of_half_precision_leave_the_order_of_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against sums in fp64 of the same bf16 values."""
    model, graph = worn("llama")
    model = model.bfloat16()
    found = scored(model, graph, [batch_of("llama")])
    monkeypatch.setattr(gram, "sums_in", lambda dtype, width: torch.float64)
    monkeypatch.setattr(gram, "add_upper", lambda total, values, _: total.add_(values.double().T @ values.double()))
    for name, exact in scored(model, graph, [batch_of("llama")]).items():
        assert torch.equal(found[name].argsort(), exact.argsort())
        assert relative(found[name], exact) < 1e-3
