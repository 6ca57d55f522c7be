"""Heads against channels: the way that leaves the least loss under its masks, by an independent look at each."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset
from workbench import Blocks, build_model, traced

from passes.budget import Solver, best_units
from passes.decide import DecidePass, ScorePass
from passes.decide.balance import ROWS, WAYS, balanced
from passes.models import masked, sample_rows
from passes.options import ScoreOptions, Target
from passes.pipeline import Pipeline, Program, RunContext
from passes.shrink import ShrinkPass

TARGET = Target(ratio=0.2)


def confident(idle: str) -> tuple[Program, Dataset[dict[str, torch.Tensor]]]:
    """A model whose modules of that name give nothing, and rows whose labels are what it is sure of."""
    model = build_model("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(0.0 if idle in name else 50.0 if "lm_head" in name else 1.0)
        ids = Blocks(8).ids
        told = model(input_ids=ids).logits.argmax(-1)
    labels = torch.cat([ids[:, :1], told[:, :-1]], 1)
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    return traced(model), ListDataset(rows)


class ListDataset(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, rows: list[dict[str, torch.Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_of_least_loss_is_taken(dtype: torch.dtype) -> None:
    program = traced(build_model("llama").to(dtype))
    data = Blocks(40)
    scored = ScorePass(TARGET, data, ScoreOptions(criterion="magnitude", samples=36))(program).program
    graph, scores, ways = program.traced, scored.scores, scored.history[-1].report.ways
    assert len(ways) > 1
    ids = data.ids[torch.tensor(sample_rows(40, ROWS, 0))]
    losses = []
    for way in ways:
        with masked(program.model, graph, best_units(graph, scores, graph.uniform(way.kept))), torch.no_grad():
            losses.append(float(program.model(input_ids=ids, labels=ids).loss))
    assert [way.loss for way in ways] == pytest.approx(losses, rel=1e-5 if dtype == torch.float32 else 1e-2)
    best = min(ways, key=lambda way: way.loss)
    kept = {name: int(mask.sum()) for name, mask in scored.masks.items()}
    assert kept == graph.uniform(best.kept)


@pytest.mark.parametrize(("idle", "whole"), [("down_proj", "kv_groups"), ("o_proj", "mlp_channels")])
def test_what_does_nothing_goes_first(idle: str, whole: str) -> None:
    program, data = confident(idle)
    passes = [ScorePass(TARGET, data, ScoreOptions(criterion="random")), DecidePass(TARGET, "random")]
    plan = Pipeline(passes)(program).program.plan
    sizes = {d.name: d.size for d in program.traced.dimensions}
    assert all(len(units) == sizes[name] for name, units in plan.kept.items() if name.endswith(whole))


def test_equal_shares_stay_when_asked_for() -> None:
    program, target = traced(build_model("llama")), Target(ratio=0.2, balance="equal")
    scored = ScorePass(target, Blocks(), ScoreOptions(criterion="random"))(program).program
    counts = Solver.of(target, program.traced).uniform_counts
    assert {name: int(mask.sum()) for name, mask in scored.masks.items()} == program.traced.uniform(counts)
    assert scored.history[-1].report.ways == ()


def test_shares_are_equal_where_there_is_no_data() -> None:
    program = traced(build_model("llama"))
    scored = ScorePass(TARGET, ListDataset([]), ScoreOptions(criterion="magnitude"))(program).program
    counts = Solver.of(TARGET, program.traced).uniform_counts
    assert {name: int(mask.sum()) for name, mask in scored.masks.items()} == program.traced.uniform(counts)


def test_a_loss_that_is_no_number_loses() -> None:
    program = traced(build_model("llama"))
    solver = Solver.of(TARGET, program.traced)
    choices = solver.balances(WAYS)
    scores = {d.name: torch.rand(d.size) for d in program.traced.dimensions}
    losses = iter([float("nan"), *[3.0 - number for number in range(len(choices) - 1)]])
    masks, ways = balanced(program.model, solver, choices, scores, lambda: next(losses), lambda: None)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == program.traced.uniform(choices[-1])
    assert [way.loss for way in ways] == [*sorted(way.loss for way in ways[:-1]), None]


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_every_way_is_within_the_target_and_none_is_smaller_than_it_must(ratio: float) -> None:
    graph = traced(build_model("llama")).traced
    solver = Solver.of(Target(ratio=ratio), graph)
    ways = solver.balances(WAYS)
    assert ways[0] == solver.uniform_counts
    assert len({tuple(way.items()) for way in ways}) == len(ways) <= WAYS
    for way in ways:
        assert solver.meter.fits(graph.uniform(way), solver.limits)
        for bundle in solver.bundles:
            wider = [count for count in bundle.counts if count > way[bundle.name]][:1]
            assert not wider or not solver.meter.fits(graph.uniform({**way, bundle.name: wider[0]}), solver.limits)


def test_so_many_ways_at_most_are_measured() -> None:
    graph = traced(build_model("llama")).traced
    assert len(Solver.of(Target(ratio=0.2), graph).balances(2)) == 2


def test_a_compact_model_is_that_of_the_best_way() -> None:
    program = traced(build_model("llama"))
    passes = [ScorePass(TARGET, Blocks(), ScoreOptions(criterion="obs")), DecidePass(TARGET, "obs"), ShrinkPass()]
    model = Pipeline(passes)(program, RunContext(samples=8)).program.model
    assert sum(parameter.numel() for parameter in model.parameters()) <= 0.8 * program.traced.parameters()
