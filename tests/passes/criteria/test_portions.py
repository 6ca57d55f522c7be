"""A graph in portions: what is held at once stays under the room, and the scores are those of the whole."""

from __future__ import annotations

import itertools
import weakref

import pytest
import torch
from workbench import Blocks, build_model, traced

from passes.criteria import obs, portions, room_on
from passes.criteria.obs import held_bytes
from passes.criteria.portions import HOST_BYTES
from passes.decide import ScorePass
from passes.graph import Dimension
from passes.options import ScoreOptions, Target
from passes.pipeline import RunContext


def by_size(dimension: Dimension) -> int:
    return dimension.size


def test_portions_are_runs_of_dimensions_that_fit() -> None:
    graph = traced(build_model("llama")).traced
    sizes = [dimension.size for dimension in graph.dimensions]
    for room in range(1, sum(sizes) + 1):
        found = portions(graph, by_size, room)
        assert [d.name for part in found for d in part.dimensions] == [d.name for d in graph.dimensions]
        held = [[d.size for d in part.dimensions] for part in found]
        assert all(sum(part) <= room or len(part) == 1 for part in held)
        assert all(sum(part) + after[0] > room for part, after in itertools.pairwise(held))


def test_a_graph_that_fits_is_left_whole() -> None:
    graph = traced(build_model("llama")).traced
    assert portions(graph, by_size, HOST_BYTES) == (graph,)


def test_obs_holds_a_matrix_of_inputs_and_one_of_outputs() -> None:
    graph = traced(build_model("llama")).traced
    channels = graph.by_name["layers.0.mlp_channels"]
    outputs, inputs = graph.shapes["model.layers.0.mlp.down_proj.weight"]
    assert held_bytes(graph, channels) == 8 * (inputs**2 + outputs**2)


def test_what_is_held_while_scoring_stays_under_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    program = traced(build_model("llama"))
    graph = program.traced
    room = max(held_bytes(graph, dimension) for dimension in graph.dimensions)
    seen, most = weakref.WeakSet[torch.Tensor](), [0]
    make = obs.Inputs

    def tracked(values: torch.Tensor) -> obs.Inputs:
        made = make(values)
        seen.add(made.products)
        most[0] = max(most[0], sum(products.numel() for products in seen))
        return made

    monkeypatch.setattr(obs, "Inputs", tracked)
    options = {"criterion": "obs", "samples": 12, "batch_size": 5}
    whole = ScorePass(Target(ratio=0.3), Blocks(), ScoreOptions(**options))(program).program
    held_whole, most[0] = most[0], 0
    parts = ScorePass(Target(ratio=0.3), Blocks(), ScoreOptions(**options, statistics_bytes=room))(program).program
    assert most[0] < held_whole / 2
    assert whole.history[-1].report.portions == 1
    assert parts.history[-1].report.portions > 1
    assert parts.history[-1].report.loss == whole.history[-1].report.loss
    assert whole.scores is not None
    assert parts.scores is not None
    assert all(torch.equal(score, parts.scores[name]) for name, score in whole.scores.items())


def test_progress_goes_on_over_all_portions() -> None:
    program, calls = traced(build_model("llama")), []
    options = ScoreOptions(criterion="obs", samples=12, batch_size=6, statistics_bytes=1)
    run = RunContext(progress=lambda *call: calls.append(call))
    done = ScorePass(Target(ratio=0.3, balance="equal"), Blocks(), options)(program, run).program
    parts = done.history[-1].report.portions
    assert parts == len(program.traced.dimensions)
    one = 12 + 1  # the rows of the sample, and the dimension that is ranked behind them
    assert calls == [("score", one * part + seen, one * parts) for part in range(parts) for seen in (6, 12, 13)]


def test_the_room_on_a_gpu_is_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert room_on(torch.device("cuda")) == 550
    assert room_on(torch.device("cpu")) == HOST_BYTES
