from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from workbench import build_model

from passes.budget import Solver
from passes.errors import OptionError
from passes.graph import PruningGraph
from passes.options import Budget, Schedule, SnapshotOptions, Target
from passes.options.snapshots import read_ratios
from passes.trace import trace
from passes.tuning.stages import Stage, StagedRun, one_stage, staged_run, stages

LLAMA = trace(build_model("llama").config)
COARSE = trace(build_model("llama", num_key_value_heads=2, intermediate_size=512).config)
"""Two KV groups that cost as much as 64 channels each."""


def solvers(ratios: list[float], graph: PruningGraph = LLAMA, **target: object) -> list[Solver]:
    return [Solver.of(Target(ratio=ratio, **target), graph) for ratio in ratios]


def scores(graph: PruningGraph, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {d.name: torch.rand(d.size, generator=generator) for d in graph.dimensions}


ladders = st.lists(st.sampled_from([0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5]), min_size=1, max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    ratios=ladders.map(sorted),
    steps=st.integers(48, 400),
    cooldown=st.integers(1, 8),
    warmup=st.floats(0, 0.2),
    every=st.integers(1, 12),
)
def test_each_stage_ramps_rests_for_the_cooldown_and_hands_over(
    ratios: list[float], steps: int, cooldown: int, warmup: float, every: int
) -> None:
    schedule = Schedule(warmup=warmup, cooldown=0.3, every=every)
    found = stages(solvers(ratios), schedule, steps, cooldown)
    assert found[-1].end == steps
    assert found[0].events[0][0] == max(1, round(warmup * steps))
    before, ramps = 0.0, []
    for stage, ratio in zip(found, ratios, strict=True):
        times, shares = zip(*stage.events, strict=True)
        assert stage.end - times[-1] == cooldown
        assert list(times) == sorted(set(times))
        gone = [share * ratio for share in shares]
        assert gone == sorted(gone)
        assert before < gone[0]
        assert shares[-1] == 1
        ramps.append(times[-1] - times[0])
        before = ratio
    assert [a.end for a in found[:-1]] == [b.events[0][0] for b in found[1:]]
    each = (sum(ramps) - len(ramps)) / ratios[-1]
    removed = [after - before for before, after in itertools.pairwise([0.0, *ratios])]
    assert ramps == pytest.approx([1 + each * part for part in removed], abs=1.5)


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(20, 400), warmup=st.floats(0, 0.4), cooldown=st.floats(0.1, 0.5), every=st.integers(1, 20))
def test_one_ratio_is_the_single_run(steps: int, warmup: float, cooldown: float, every: int) -> None:
    schedule = Schedule(warmup=warmup, cooldown=cooldown, every=every)
    (solver,) = solvers([0.3])
    assert stages([solver], schedule, steps, None) == one_stage(solver, schedule, steps)


def test_by_default_the_cooldown_of_the_schedule_is_divided() -> None:
    found = stages(solvers([0.1, 0.3]), Schedule(warmup=0.1, cooldown=0.5), 100, None)
    assert [stage.end - stage.events[-1][0] for stage in found] == [25, 25]


def test_a_later_ramp_starts_where_the_last_one_ended_and_follows_the_cubic_curve() -> None:
    first, second = stages(solvers([0.2, 0.4]), Schedule(warmup=0.1, every=1), 40, 6)
    assert (first.end, second.end) == (22, 40)
    # from step 22 on 13 events to step 34; eq. 1 of Zhu & Gupta with s_i = 0.2, s_f = 0.4
    expected = [0.4 + (0.2 - 0.4) * (1 - (i + 1) / 13) ** 3 for i in range(13)]
    assert [step for step, _ in second.events] == list(range(22, 35))
    assert [share * 0.4 for _, share in second.events] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("cooldown", [None, 1, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.9])
def test_too_few_steps_are_refused_with_the_least_number(cooldown: int | None, warmup: float) -> None:
    many, schedule = solvers([0.1, 0.2, 0.3]), Schedule(warmup=warmup, cooldown=0.1)
    with pytest.raises(OptionError, match="steps are too few for 3 snapshots") as error:
        stages(many, schedule, 3, cooldown)
    least = int(re.search(r"take (\d+) steps", str(error.value))[1])
    assert stages(many, schedule, least, cooldown)[-1].end == least
    with pytest.raises(OptionError, match=f"take {least} steps"):
        stages(many, schedule, least - 1, cooldown)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ratios": ()}, "at least one ratio"),
        ({"ratios": (0.3, 0.1)}, "must ascend"),
        ({"ratios": (0.1, 0.1, 0.3)}, "once only"),
        ({"ratios": (0.0, 0.3)}, "above 0 and below 1, got 0.0"),
        ({"ratios": (0.3, 1.0)}, "above 0 and below 1, got 1.0"),
        ({"ratios": (0.3, float("nan"))}, "a finite number, got nan"),
        ({"ratios": (0.3,), "cooldown": 0}, "snapshot steps must be at least 1"),
    ],
    ids=str,
)
def test_impossible_snapshots_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SnapshotOptions(**wrong)


def test_snapshots_are_read_from_text() -> None:
    assert read_ratios("0.1,0.25, 0.5") == (0.1, 0.25, 0.5)
    for wrong in ("0.1;0.3", "0.1,,0.3"):
        with pytest.raises(OptionError, match="separated by commas"):
            read_ratios(wrong)


def test_a_budget_and_another_ratio_are_refused() -> None:
    options = SnapshotOptions(ratios=(0.1, 0.3))
    budget = Solver.of(Target(budget=Budget(macs=0.7, kv_cache_bytes=0.9)), LLAMA)
    with pytest.raises(OptionError, match="budget of macs, kv_cache_bytes: make one run for each"):
        staged_run(options, budget, Schedule(), 50)
    with pytest.raises(OptionError, match=r"last snapshot ratio, 0\.3, must be the target's, 0\.4"):
        staged_run(options, solvers([0.4])[0], Schedule(), 50)


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
@pytest.mark.parametrize("graph", [LLAMA, COARSE], ids=["fine", "coarse"])
def test_every_stage_ends_with_the_masks_of_a_single_run(graph: PruningGraph, layout: str) -> None:
    ratios, by = [0.1, 0.2, 0.3, 0.45], scores(graph)
    some = solvers(ratios, graph, layout=layout)
    found = stages(some, Schedule(every=2), 120, 9)
    course = StagedRun(found)
    assert list(course.ends.items()) == [(stage.end, ratio) for stage, ratio in zip(found, ratios, strict=True)]
    assert sum(course.lengths) == 120
    for stage, solver in zip(found, some, strict=True):
        masks = course.masks(stage.events[-1][0], by)
        assert masks is not None
        expected = solver.masks(by)
        assert all(torch.equal(mask, expected[name]) for name, mask in masks.items())
        assert all(course.masks(step, by) is None for step in range(stage.events[-1][0] + 1, stage.end))
    assert course.masks(120, by) is None


def test_uniform_widths_never_leave_the_range_between_two_stages() -> None:
    some, by = solvers([0.1, 0.2, 0.3, 0.45], COARSE), scores(COARSE)
    found = stages(some, Schedule(), 120, 9)
    course, start = StagedRun(found), {width.name: width.size for width in COARSE.widths}
    for stage, solver in zip(found, some, strict=True):
        end = solver.uniform_counts
        for step, _ in stage.events:
            masks = course.masks(step, by)
            assert masks is not None
            for name, count in end.items():
                kept = int(masks[COARSE.of_width(name)[0].name].sum())
                assert min(start[name], count) <= kept <= max(start[name], count)
        start = end


def test_without_revival_ratios_whose_widths_do_not_nest_are_refused() -> None:
    """Where a whole KV group goes, rounding can give channels back."""
    ladder = [ratio / 100 for ratio in range(10, 50)]
    counts = {solver.target.ratio: solver.uniform_counts for solver in solvers(ladder, COARSE)}
    low, high = next(
        (a, b) for a, b in itertools.pairwise(ladder) if counts[b]["mlp_channels"] > counts[a]["mlp_channels"]
    )
    options, last = SnapshotOptions(ratios=(low, high)), solvers([high], COARSE)[0]
    staged_run(options, last, Schedule(), 50)
    with pytest.raises(OptionError, match=r"mlp_channels a layer .* allow revival"):
        staged_run(options, last, Schedule(), 50, revival=False)


def test_a_single_stage_needs_no_ratio() -> None:
    solver = Solver.of(Target(budget=Budget(macs=0.7)), LLAMA)
    assert StagedRun([Stage(solver, [(1, 1.0)], 5)]).ends == {5: None}


SPARSE = StagedRun([Stage(Solver.of(Target(ratio=0.3), LLAMA), [(12, 0.5), (20, 1.0)], 30)])


@pytest.mark.parametrize(
    ("every", "memory", "expected"),
    [
        (1, None, range(1, 21)),
        (1, 3, [10, 11, 12, 18, 19, 20]),
        (1, 1, [12, 20]),
        (4, None, [4, 8, 12, 16, 20]),
        (4, 2, [8, 12, 16, 20]),
        (50, None, [12, 20]),
    ],
)
def test_steps_count_that_are_near_enough_before_an_event(
    every: int, memory: int | None, expected: Sequence[int]
) -> None:
    assert [step for step in range(1, 31) if SPARSE.counts(step, every, memory)] == list(expected)
    assert [step for step in range(1, 31) if SPARSE.due(step)] == [12, 20]
