"""From a target to counts: limits together, floors, protected layers, frozen dimensions, layers and blocks."""

from __future__ import annotations

import random
from functools import lru_cache

import pytest
import torch
import zoo

from passes.budget import Solver, best_units
from passes.budget.solver import present
from passes.budget.uniform import UniformAllocation
from passes.errors import OptionError, PlanError, UnreachableBudgetError
from passes.graph import PruningGraph
from passes.models import count_parameters
from passes.options import MEASURES, Budget, Layout, Target, TraceOptions
from passes.shrink import build_compact
from passes.trace import trace

CLOSED_FORM = [name for name, measure in MEASURES.items() if not measure.needs_latency]


@lru_cache
def graph_of(name: str, **options: object) -> PruningGraph:
    case = zoo.ZOO[name]
    return trace(case.config(num_hidden_layers=3), model_type=case.model_class, options=TraceOptions(**options))


def random_scores(graph: PruningGraph, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {d.name: torch.rand(d.size, generator=generator) + 0.01 for d in graph.dimensions}


def random_budget(seed: int) -> Budget:
    generator = random.Random(seed)
    chosen = generator.sample(CLOSED_FORM, generator.choice((1, 2, 3)))
    return Budget(**{measure: generator.uniform(0.2, 0.97) for measure in chosen})


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "mixtral", "phi3"])
def test_random_budgets_are_met_within_one_step_or_refused_with_what_can_be_reached(name: str, layout: Layout) -> None:
    graph = graph_of(name, custom_code=layout is Layout.PER_LAYER) if name != "gpt2" else _gpt2(layout)
    met = 0
    for seed in range(20):
        budget = random_budget(seed)
        if not _smallest_fits(graph, budget, layout):
            with pytest.raises(UnreachableBudgetError, match=r"reachable ratio is|Reachable are fractions from"):
                Solver.of(Target(budget=budget, layout=layout), graph)
            continue
        solver = Solver.of(Target(budget=budget, layout=layout), graph)
        met += 1
        counts = solver.kept(random_scores(graph, seed))
        for measure, fraction in budget.asked.items():
            cost = getattr(graph.cost(counts), measure)
            assert cost <= fraction * getattr(graph.cost(), measure) + 1e-3
        for bundle in solver.bundles:
            wider = [count for count in bundle.counts if count > counts[bundle.dimensions[0].name]]
            if wider:
                more = {**counts, **{d.name: wider[0] for d in bundle.dimensions}}
                assert not solver.meter.fits(more, solver.limits)
    assert met or name == "gpt2"


def _gpt2(layout: Layout) -> PruningGraph:
    case = zoo.ZOO["gpt2"]
    options = TraceOptions(custom_code=layout is Layout.PER_LAYER)
    return trace(case.config(), model_type=case.model_class, options=options)


def _smallest_fits(graph: PruningGraph, budget: Budget, layout: Layout) -> bool:
    solver = Solver.of(Target(budget=Budget(parameters=0.99), layout=layout), graph)
    least, dense = graph.cost(solver.smallest), graph.cost()
    return all(
        getattr(least, measure) <= fraction * getattr(dense, measure) for measure, fraction in budget.asked.items()
    )


@pytest.mark.parametrize("layout", Layout)
def test_the_closed_form_cost_is_that_of_the_built_model(layout: Layout) -> None:
    model = zoo.build("llama", num_hidden_layers=3)
    graph = graph_of("llama", custom_code=layout is Layout.PER_LAYER)
    scores = random_scores(graph)
    for ratio in (0.1, 0.3, 0.45):
        solver = Solver.of(Target(ratio=ratio, layout=layout), graph)
        masks = best_units(graph, scores, solver.kept(scores))
        kept = {name: tuple(mask.nonzero().flatten().tolist()) for name, mask in masks.items()}
        compact = build_compact(model, graph, kept)
        assert count_parameters(compact) == graph.parameters(kept) <= (1 - ratio) * graph.parameters()


def test_floors_protected_layers_and_frozen_dimensions_hold() -> None:
    graph = graph_of("llama", custom_code=True)
    target = Target(
        ratio=0.15,
        layout="per-layer",
        min_heads=2,
        min_channels=24,
        protect=("layers.0",),
        freeze=("layers.1.kv_groups",),
    )
    counts = Solver.of(target, graph).kept(random_scores(graph))
    assert (counts["layers.0.kv_groups"], counts["layers.0.mlp_channels"]) == (4, 64)
    assert counts["layers.1.kv_groups"] == 4
    assert all(counts[f"layers.{layer}.kv_groups"] >= 2 for layer in range(3))
    assert all(counts[f"layers.{layer}.mlp_channels"] >= 24 for layer in range(3))


def test_a_negative_number_protects_from_the_end() -> None:
    graph = graph_of("llama", custom_code=True)
    target = Target(ratio=0.3, layout="per-layer", protect=("layers.-1",))
    counts = Solver.of(target, graph).kept(random_scores(graph))
    assert (counts["layers.2.kv_groups"], counts["layers.2.mlp_channels"]) == (4, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protect": ("layers.3",), "layout": "per-layer"}, r"'layers\.3' names no layer .* layers\.0 to layers\.2"),
        ({"protect": ("layers.0",)}, "the uniform layout cannot: choose layout='per-layer'"),
        ({"freeze": ("mlps",)}, "'mlps' names no dimension.*kv_groups, mlp_channels"),
        ({"freeze": ("kv_groups", "mlp_channels")}, r"nothing is left to remove .*\(kv_groups, mlp_channels\)"),
        ({"layout": "mixed"}, "unknown layout 'mixed': choose one of uniform, per-layer"),
        ({"comparison": "rank"}, "unknown comparison 'rank': choose one of raw, kind, dimension"),
        ({"min_heads": 0}, "min_heads must be at least 1, got 0"),
        ({"budget": Budget(macs=0.5)}, "either ratio or budget"),
    ],
)
def test_an_impossible_target_is_refused_with_the_value(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Solver.of(Target(**{"ratio": 0.3, **changes}), graph_of("llama"))


def test_a_budget_that_the_dense_model_meets_is_refused() -> None:
    graph = graph_of("llama")
    with pytest.raises(OptionError, match=r"within the budget already \(parameters=10000000\)"):
        Solver.of(Target(budget=Budget(parameters=10_000_000)), graph)


def test_a_latency_budget_needs_a_model_of_it() -> None:
    with pytest.raises(OptionError, match="needs a latency model"):
        Solver.of(Target(budget=Budget(latency=0.5)), graph_of("llama"))


def test_masks_beyond_a_limit_are_named_with_the_amounts() -> None:
    graph = graph_of("llama")
    solver = Solver.of(Target(budget=Budget(kv_cache_bytes=0.5)), graph)
    with pytest.raises(PlanError, match=r"kv_cache_bytes=0\.5: 768 kv cache bytes are left, 384 .* allowed"):
        solver.check({})


@pytest.mark.parametrize("layout", Layout)
def test_unimportant_layers_go_when_widths_are_frozen(layout: Layout) -> None:
    graph = graph_of("llama", depth="layers", custom_code=True)
    scores = {**random_scores(graph), "layers": torch.tensor([3.0, 0.1, 2.0])}
    target = Target(ratio=0.2, layout=layout, freeze=("kv_groups", "mlp_channels"))
    kept = Solver.of(target, graph).kept(scores)
    assert tuple(kept["layers"]) == (0, 2)
    assert (kept["layers.1.kv_groups"], kept["layers.1.mlp_channels"]) == ((), ())
    assert (kept["layers.0.kv_groups"], kept["layers.2.mlp_channels"]) == (4, 64)


def test_a_layer_that_matters_nothing_goes_before_any_width() -> None:
    graph = graph_of("llama", depth="layers", custom_code=True)
    scores = {d.name: torch.ones(d.size) for d in graph.dimensions} | {"layers": torch.tensor([1.0, 1.0, 1e-6])}
    kept = Solver.of(Target(ratio=0.2, layout="per-layer"), graph).kept(scores)
    assert tuple(kept["layers"]) == (0, 1)


def test_protected_layers_stay_and_all_layers_never_go() -> None:
    graph = graph_of("llama", depth="layers", custom_code=True)
    scores = {**random_scores(graph), "layers": torch.tensor([0.1, 0.2, 3.0])}
    freeze = ("kv_groups", "mlp_channels")
    target = Target(ratio=0.2, layout="per-layer", protect=("layers.0",), freeze=freeze)
    assert tuple(Solver.of(target, graph).kept(scores)["layers"]) == (0, 2)
    with pytest.raises(UnreachableBudgetError):
        Solver.of(Target(ratio=0.95, layout="per-layer", freeze=freeze), graph)


def test_layers_that_are_off_stay_off_without_revival() -> None:
    graph = graph_of("llama", depth="layers", custom_code=True)
    scores = {**random_scores(graph), "layers": torch.tensor([0.0, 2.0, 3.0])}
    among = {d.name: torch.ones(d.size, dtype=torch.bool) for d in graph.dimensions}
    among["layers"] = torch.tensor([False, True, True])
    kept = Solver.of(Target(ratio=0.3, layout="per-layer"), graph).kept(scores, 0.5, among)
    assert 0 not in kept["layers"]


def test_blocks_go_apart() -> None:
    graph = graph_of("llama", depth="blocks", custom_code=True)
    scores = random_scores(graph) | {"attention_blocks": torch.tensor([1.0, 1e-9, 1.0]), "mlp_blocks": torch.ones(3)}
    target = Target(ratio=0.1, layout="per-layer", freeze=("kv_groups", "mlp_channels"))
    kept = Solver.of(target, graph).kept(scores)
    assert tuple(kept["attention_blocks"]) == (0, 2)
    assert kept["layers.1.kv_groups"] == ()
    assert {d.name for bundle in present(Solver.of(target, graph).bundles, kept) for d in bundle.dimensions} == {
        "layers.0.kv_groups",
        "layers.2.kv_groups",
        *(f"layers.{layer}.mlp_channels" for layer in range(3)),
    }


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_blocks_of_both_kinds_go_where_neither_kind_alone_suffices(name: str) -> None:
    graph = graph_of(name, depth="blocks")
    whole = ("kv_groups", "mlp_channels") if name == "llama" else ()
    cost = {"attention_blocks": range(3), "mlp_blocks": range(3)}
    alone = [graph.parameters(graph.complete({**cost, kind: (0,)})) for kind in cost]
    both = graph.parameters(graph.complete(dict.fromkeys(cost, (0,))))
    for bound in (min(alone) - 1, both):
        solver = Solver.of(Target(budget=Budget(parameters=bound), freeze=whole), graph)
        solver.check(solver.kept(random_scores(graph)))


def test_the_hidden_size_competes_too() -> None:
    graph = graph_of("llama", hidden=True, custom_code=True)
    scores = {d.name: torch.ones(d.size) for d in graph.dimensions} | {"hidden": torch.full((32,), 1e-6)}
    solver = Solver.of(Target(ratio=0.3, layout="per-layer", comparison="raw"), graph)
    kept = solver.kept(scores)
    assert kept["hidden"] < 32
    solver.check(kept)


def test_what_fits_is_given_back_where_the_least_share_is_kept() -> None:
    """From the smallest model up, all widths grow alike: none is a coarse step ahead of another for long."""
    solver = Solver.of(Target(ratio=0.4), graph_of("llama", hidden=True))
    least = {bundle.name: bundle.counts[0] for bundle in solver.bundles}
    filled = UniformAllocation(solver.bundles, solver.meter, solver.limits).filled(solver.bundles, least)
    shares = [filled[bundle.name] / bundle.size for bundle in solver.bundles]
    assert max(shares) - min(shares) <= 0.25
    assert solver.meter.fits(solver.meter.graph.uniform(filled), solver.limits)
