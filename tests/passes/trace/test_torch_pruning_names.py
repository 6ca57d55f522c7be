"""Names of torch-pruning that ``passes.trace.dependencies`` builds on: a failure here says that it has changed."""

from __future__ import annotations

import inspect
from functools import partial

import torch
import torch_pruning as tp
from moved import Named
from torch import nn

named = partial(Named, "torch-pruning", mend="passes/trace/dependencies.py")


def graph() -> tuple[nn.Sequential, tp.DependencyGraph]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    built = tp.DependencyGraph().build_dependency(model, example_inputs=torch.ones(1, 3), verbose=False)
    return model, built


def test_a_pruning_function_of_ones_own_has_the_methods_that_are_called() -> None:
    with named("BasePruningFunc"):
        wanted = {"prune_out_channels", "prune_in_channels", "get_out_channels", "get_in_channels"}
        assert wanted <= set(dir(tp.BasePruningFunc))
        assert "customized_pruners" in inspect.signature(tp.DependencyGraph.build_dependency).parameters


def test_the_graph_says_what_it_has_traced() -> None:
    with named("DependencyGraph.module2node"):
        model, built = graph()
        assert all(layer in built.module2node for layer in model)
        assert nn.Linear(1, 1) not in built.module2node


def test_a_group_tells_producers_from_consumers() -> None:
    with named("get_pruner_of_module, is_out_channel_pruning_fn, node.module"):
        model, built = graph()
        root = built.get_pruner_of_module(model[0]).prune_out_channels
        assert built.is_out_channel_pruning_fn(root)
        assert built.module2node[model[0]].module is model[0]


def test_an_edge_says_what_triggers_it_what_it_leads_to_and_how_indices_are_mapped() -> None:
    with named("node.dependencies, dep.is_triggered_by, dep.target, dep.handler, dep.index_mapping"):
        model, built = graph()
        root = built.get_pruner_of_module(model[0]).prune_out_channels
        (edge,) = [dep for dep in built.module2node[model[0]].dependencies if dep.is_triggered_by(root)]
        assert built.module2node[edge.target.module] is edge.target
        assert built.is_out_channel_pruning_fn(edge.handler) or built.is_in_channel_pruning_fn(edge.handler)
        assert all(mapping is None or callable(mapping) for mapping in edge.index_mapping)
