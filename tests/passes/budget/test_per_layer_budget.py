"""The greedy allocation against the best of all choices, written out."""

from __future__ import annotations

import itertools
import random
from functools import lru_cache

import pytest
import torch
import zoo

from passes.budget import Solver
from passes.budget.bundles import by_dimension
from passes.budget.per_layer import LayerAllocation, neighbours
from passes.graph import Kept, PruningGraph, count_of
from passes.options import Budget, Target, TraceOptions
from passes.trace import trace


@lru_cache
def graph_of(name: str) -> PruningGraph:
    case = zoo.ZOO[name]
    return trace(case.config(), model_type=case.model_class, options=TraceOptions(custom_code=True))


class Latency:
    """Falls unevenly with the kept count: a plateau, then a jump every 20 units, as hardware has them."""

    def __init__(self, graph: PruningGraph) -> None:
        self._graph = graph

    def dimension_seconds(self, name: str, count: float) -> float:
        dimension = self._graph.by_name[name]
        return dimension.layer + 1 + -(-count // 20) if dimension.kind.is_fine else 3.0 * count

    def seconds(self, kept: Kept) -> float:
        terms = (self.dimension_seconds(d.name, count_of(kept.get(d.name, d.size))) for d in self._graph.dimensions)
        return 5 + sum(terms)


def random_scores(graph: PruningGraph, seed: int) -> dict[str, torch.Tensor]:
    """Heavy-tailed scores on scales that differ by up to a hundred between dimensions."""
    generator = torch.Generator().manual_seed(seed)
    return {
        d.name: torch.rand(d.size, generator=generator).pow(1 + seed % 4)
        * 10 ** (2 * torch.rand(1, generator=generator))
        * graph.unit_parameters(d)
        for d in graph.dimensions
    }


def best_value(allocation: LayerAllocation) -> float:
    """The most importance that any choice of counts within the limits keeps."""
    values = [
        {
            count: sum(
                float(allocation.scores[d.name].double().sort(descending=True).values[:count].sum())
                for d in bundle.dimensions
            )
            for count in bundle.counts
        }
        for bundle in allocation.bundles
    ]
    names = [bundle.name for bundle in allocation.bundles]
    best = 0.0
    for choice in itertools.product(*(bundle.counts for bundle in allocation.bundles)):
        value = sum(table[count] for table, count in zip(values, choice, strict=True))
        if value > best:
            kept = by_dimension(allocation.bundles, dict(zip(names, choice, strict=True)))
            if allocation.meter.fits(kept, allocation.limits):
                best = value
    return best


BUDGETS = [("parameters",), ("macs",), ("parameters", "kv_cache_bytes"), ("latency",), ("latency", "parameters")]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("seed", range(15))
def test_the_allocation_is_within_one_percent_of_the_optimum(name: str, seed: int) -> None:
    graph = graph_of(name)
    fraction = 0.6 + 0.3 * random.Random(seed).random()
    budget = Budget(**dict.fromkeys(BUDGETS[seed % len(BUDGETS)], fraction))
    target = Target(budget=budget, layout="per-layer", multiple=16, comparison="raw")
    solver = Solver.of(target, graph, Latency(graph))
    allocation = LayerAllocation(solver.bundles, solver.meter, solver.limits, random_scores(graph, seed))
    counts = allocation.counts()
    assert counts is not None
    solver.check(by_dimension(solver.bundles, counts))
    assert allocation.value >= 0.99 * best_value(allocation)


def test_units_go_where_they_are_worth_least() -> None:
    graph = graph_of("llama")
    scores = {d.name: torch.full((d.size,), 100.0) for d in graph.dimensions}
    scores["layers.1.mlp_channels"] = torch.full((64,), 0.01)
    solver = Solver.of(Target(ratio=0.1, layout="per-layer", comparison="raw"), graph)
    counts = solver.kept(scores)
    assert counts["layers.1.mlp_channels"] < 64
    assert {name: count for name, count in counts.items() if name != "layers.1.mlp_channels"} == {
        "layers.0.kv_groups": 4,
        "layers.0.mlp_channels": 64,
        "layers.1.kv_groups": 4,
    }


def test_nothing_that_fits_is_left_out() -> None:
    """No bundle can be one step wider: the cost is within one rounded unit of the target."""
    for seed in range(10):
        graph = graph_of("llama")
        solver = Solver.of(Target(ratio=0.25, layout="per-layer"), graph)
        counts = solver.kept(random_scores(graph, seed))
        for bundle in solver.bundles:
            count = counts[bundle.dimensions[0].name]
            wider = [c for c in bundle.counts if c > count]
            if wider:
                assert not solver.meter.fits({**counts, bundle.name: wider[0]}, solver.limits)


def test_only_units_that_are_on_are_counted_without_revival() -> None:
    graph = graph_of("llama")
    scores = random_scores(graph, 3)
    among = {d.name: torch.arange(d.size) < d.size // 2 for d in graph.dimensions}
    solver = Solver.of(Target(ratio=0.1, layout="per-layer"), graph)
    counts = solver.kept(scores, 1.0, among)
    assert all(counts[d.name] <= d.size // 2 for d in graph.dimensions)


def test_bundles_are_neighbours_exactly_where_they_share_a_parameter() -> None:
    solver = Solver.of(Target(ratio=0.2, layout="per-layer"), graph_of("mixtral"))
    near = {name: {other.name for other in others} for name, others in neighbours(solver.bundles).items()}
    assert near["layers.0.experts"] == {"layers.0.expert_channels"}
    assert near["layers.1.expert_channels"] == {"layers.1.experts"}
    assert near["layers.0.kv_groups"] == set()
