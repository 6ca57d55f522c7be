from __future__ import annotations

import ast
import inspect
import sys

import pytest
import torch
import zoo
from shrinking import counted, dense, graph_of, outputs, some_units
from torch import nn
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from passes.models import PREFIX, compact_class
from passes.models import resized as compact_modeling
from passes.models.resized import resize
from passes.shrink import build_compact
from passes.shrink.cut import cut_state, resized_config

NOTHING = {"shapes": {}, "attributes": {}, "heads": {}}


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.conv = Conv1D(6, 4)
        self.table = nn.Embedding(8, 4)
        self.gain = nn.Parameter(torch.ones(6))
        self.heads = 4
        self.seen: dict[str, torch.Tensor | None] = {}

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None, mask: torch.Tensor | None = None) -> None:
        self.seen = {"x": x, "bias": bias, "mask": mask}


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner().to(torch.bfloat16)


def test_the_file_needs_only_torch_and_transformers() -> None:
    """It is copied beside the weights, where there is no lpc; the rest is Python's own."""
    tree = ast.parse(inspect.getsource(compact_modeling))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    packages = {str(name).partition(".")[0] for name in found}
    assert packages - sys.stdlib_module_names == {"torch", "transformers"}


def test_parameters_get_their_shapes_and_layers_know_them() -> None:
    model = Outer()
    shapes = {
        "inner.linear.weight": [5, 3],
        "inner.linear.bias": [5],
        "inner.conv.weight": [3, 5],
        "inner.conv.bias": [5],
        "inner.table.weight": [8, 2],
        "inner.gain": [3],
    }
    resize(model, {**NOTHING, "shapes": shapes})
    found = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    assert found == shapes
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    inner = model.inner
    assert (inner.linear.in_features, inner.linear.out_features) == (3, 5)
    assert (inner.conv.nx, inner.conv.nf) == (3, 5)
    assert (inner.table.num_embeddings, inner.table.embedding_dim) == (8, 2)
    assert inner.conv(torch.ones(2, 3, dtype=torch.bfloat16)).shape == (2, 5)


def test_parameters_stay_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Outer()
    resize(model, {**NOTHING, "shapes": {"inner.linear.weight": [5, 3]}})
    assert model.inner.linear.weight.is_meta


def test_attributes_are_set_on_their_modules() -> None:
    model = Outer()
    resize(model, {**NOTHING, "attributes": {"inner": {"heads": 3, "width": 12}}})
    assert (model.inner.heads, model.inner.width) == (3, 12)


def headed(names: list[str]) -> Inner:
    model = Outer()
    resize(model, {**NOTHING, "heads": {"inner": {"arguments": names, "dense": 4, "kept": [0, 2, 3]}}})
    return model.inner


def test_arguments_with_an_entry_a_head_lose_those_of_the_removed_heads() -> None:
    inner = headed(["bias", "mask"])
    mask = torch.randn(2, 4, 3, 5)
    bias = torch.randn(2 * 4, 1, 5)
    inner(torch.ones(2, 3), bias=bias, mask=mask)
    assert torch.equal(inner.seen["mask"], mask[:, [0, 2, 3]])
    expected = torch.cat([bias[[0, 2, 3]], bias[[4, 6, 7]]])
    assert torch.equal(inner.seen["bias"], expected)


def test_arguments_that_all_heads_share_stay_as_they_are() -> None:
    inner = headed(["mask"])
    mask, bias = torch.randn(2, 1, 3, 5), torch.randn(8, 1, 5)
    inner(torch.ones(2, 3), bias=bias, mask=mask)
    assert torch.equal(inner.seen["mask"], mask)
    assert torch.equal(inner.seen["bias"], bias)
    inner(torch.ones(2, 3), bias=None)
    assert inner.seen["bias"] is None


def test_the_class_is_the_stock_class_resized_on_construction() -> None:
    graph = graph_of("gpt2", custom_code=True)
    config = resized_config(dense("gpt2"), graph, some_units(graph))
    cls = compact_class(GPT2LMHeadModel)
    assert cls.__name__ == f"{PREFIX}GPT2LMHeadModel"
    assert issubclass(cls, GPT2LMHeadModel)
    model = cls(config)
    counts = counted(some_units(graph))
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        name: graph.shape(name, counts) for name in graph.shapes
    }


@pytest.mark.parametrize("name", ["gpt2", "bloom", "falcon-grouped", "bert", "stablelm", "bart", "mixtral", "t5"])
def test_the_class_with_the_tensors_computes_what_the_compact_model_does(name: str) -> None:
    """Built from nothing but the configuration as JSON and the tensors, as a checkpoint is."""
    graph = graph_of(name, custom_code=True)
    kept = some_units(graph, seed=3)
    compact = build_compact(dense(name), graph, kept)
    config = resized_config(dense(name), graph, kept)
    again = type(config).from_dict(config.to_dict())
    model = compact_class(zoo.ZOO[name].model_class)(again)
    model.load_state_dict(cut_state(dense(name).state_dict(), graph, kept))
    assert torch.equal(outputs(model.eval(), name), outputs(compact, name))
