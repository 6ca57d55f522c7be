from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from plugins import installed
from test_solver import graph_of, random_scores

from passes.budget import Solver
from passes.errors import OptionError
from passes.graph import Kept, Kind, PruningGraph, count_of
from passes.options import COUNTS, MEASURES, Budget, Layout, Measure, Target, register_measure


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with MEASURES.restored():
        yield


TILE = 16


def tiles(graph: PruningGraph, kept: Kept) -> int:
    """Tiles of 16 channels that the MLPs take: it does not fall evenly."""
    counts = [count_of(kept.get(mlp.name, mlp.size)) for mlp in graph.of_kind(Kind.MLP_CHANNELS)]
    return sum(-(-count // TILE) for count in counts)


TILES = Measure(name="tiles", label="tiles (of 16 channels)", amount=tiles, example="6")


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("more", [(), ("parameters=0.8",)])
def test_a_budget_limits_a_measure_of_the_user_s_own(layout: Layout, more: Sequence[str]) -> None:
    register_measure(TILES)
    graph = graph_of("llama")
    budget = Budget.parse(["tiles=0.5", *more])
    assert budget.asked["tiles"] == 0.5
    solver = Solver.of(Target(budget=budget, layout=layout, multiple=1), graph)
    kept = solver.kept(random_scores(graph))
    solver.check(kept)
    assert tiles(graph, kept) == tiles(graph, {}) // 2
    counts = {count_of(kept[mlp.name]) for mlp in graph.of_kind(Kind.MLP_CHANNELS)}
    assert more or all(count % TILE == 0 for count in counts), "whole tiles are used where nothing else is asked"


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_counted_one_by_one_or_evenly_the_same_units_go(name: str) -> None:
    register_measure(replace(MEASURES["parameters"], name="one_by_one", linear=False))
    graph = graph_of(name)
    plans = [
        Solver.of(Target(budget=Budget.parse([f"{measure}=0.85"]), layout=Layout.PER_LAYER), graph).kept(
            random_scores(graph)
        )
        for measure in ("parameters", "one_by_one")
    ]
    assert plans[0] == plans[1]


def test_an_amount_of_a_measure_of_the_user_s_own_is_read_and_shown_as_it_says() -> None:
    register_measure(replace(TILES, units={"": 1, "pair": 2}, example="2pair", show=lambda n: f"{n:.0f} tiles"))
    (limit,) = Budget(others={"tiles": "2 Pair"}).limits({"tiles": 8})
    assert (limit.bound, str(limit)) == (4, "tiles=2 Pair")
    with pytest.raises(OptionError, match=r'cannot be read: write it as in "2pair"'):
        Budget(others={"tiles": "2 score"})
    with pytest.raises(OptionError, match="already"):
        Solver.of(Target(budget=Budget(others={"tiles": 64})), graph_of("llama"))


def test_a_measure_is_registered_once_and_known_by_name() -> None:
    with pytest.raises(OptionError, match="'latency' is taken already"):
        register_measure(replace(TILES, name="latency"))
    with pytest.raises(OptionError, match="unknown measure 'tiles': choose one of parameters, macs"):
        Budget(others={"tiles": 0.5})
    with pytest.raises(OptionError, match="one of parameters, macs"):
        Budget.parse(["tiles=0.5"])


def test_every_measure_has_a_label_and_an_example_that_it_reads() -> None:
    for name, measure in MEASURES.items():
        assert measure.name == name
        assert measure.label
        assert measure.parsed(measure.example) > 0
    assert MEASURES["parameters"].units == COUNTS


def test_a_package_brings_a_measure(tmp_path: Path) -> None:
    code = "from passes.options import Measure\nM = Measure(name='rows', label='rows', amount=lambda g, k: 7)\n"
    with installed(tmp_path, "rows_package", "lpc.measures", {"rows": "rows_package:M"}, code) as run:
        assert run("import lpc; print(lpc.Budget.parse(['rows=0.5']).asked)") == "{'rows': 0.5}"
