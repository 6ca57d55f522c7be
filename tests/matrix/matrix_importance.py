"""The importance that lpc reads from A and B, against dense autograd on the materialised weights W0 + sBA."""

from __future__ import annotations

import copy

import torch
import zoo
from handmade import RANK, SCALING, by_loops, exact, factors, materialised, randomise, weights_of
from peft import get_peft_model
from transformers.pytorch_utils import Conv1D

from passes.criteria import LoRAPrune
from passes.graph import PruningGraph
from passes.models import lora_config
from passes.options import ImportanceOptions, LoraOptions


def importance_error(name: str, graph: PruningGraph) -> float:
    """The largest relative error of a dimension's scores.

    ``((gB·A + B·gA) ⊙ W)²`` as lpc computes it is compared with ``(s(∇W·AᵀA + BBᵀ·∇W) ⊙ W)²``, in float64 where the
    dense model itself is finite there.
    """
    pristine = zoo.build(name)
    options = LoraOptions(rank=RANK, alpha=RANK * SCALING)
    adapted = get_peft_model(copy.deepcopy(pristine), lora_config(options, graph, pristine)).eval()
    randomise(adapted)
    if torch.isfinite(_loss(exact(copy.deepcopy(pristine)), name)).item():
        adapted, pristine = exact(adapted), exact(pristine)
    criterion = LoRAPrune(graph, ImportanceOptions(normalise=False, smoothing=0.0))
    criterion.begin(adapted)
    _loss(adapted, name).backward()
    criterion.observe(adapted)
    criterion.end(adapted)
    names = weights_of(graph)
    dense = materialised(adapted, pristine, names)
    _loss(dense, name).backward()
    elements = {weight: _elements(dense, adapted, weight) for weight in names}
    worst = 0.0
    for dimension in graph.dimensions:
        wanted = sum(by_loops(elements[part.parameter], part, dimension.size) for part in dimension.weights)
        assert isinstance(wanted, torch.Tensor)
        error = (criterion.scores[dimension.name].double() - wanted.double()).abs().max() / wanted.abs().max()
        worst = max(worst, float(error))
    return worst


def _loss(model: torch.nn.Module, name: str) -> torch.Tensor:
    case, dtype = zoo.ZOO[name], next(model.parameters()).dtype
    batch = zoo.inputs(name, case)
    batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
    loss: torch.Tensor = model(**batch, **zoo.labels(case, batch)).loss
    return loss


def _elements(dense: torch.nn.Module, adapted: torch.nn.Module, name: str) -> torch.Tensor:
    """The score of every element of a weight, in its stored layout."""
    weight = dense.get_parameter(name)
    assert weight.grad is not None
    turned = isinstance(dense.get_submodule(name.rpartition(".")[0]), Conv1D)
    values, gradient = (x.T if turned else x for x in (weight.detach(), weight.grad))
    stacked = values.dim() == 3
    pairs = zip(
        values if stacked else [values], gradient if stacked else [gradient], factors(adapted, name), strict=True
    )
    scores = [(SCALING * (g @ a.T @ a + b @ b.T @ g) * w).square() for w, g, (a, b) in pairs]
    found = torch.stack(scores) if stacked else scores[0]
    return found.T if turned else found
