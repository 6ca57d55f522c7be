from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workbench import build_model, uniform

from passes.errors import OptionError
from passes.graph import Kind, PruningGraph
from passes.options import Schedule
from passes.trace import trace
from passes.tuning.mask_path import ramp

schedules = st.builds(
    lambda warmup, cooldown, every: Schedule(warmup=warmup, cooldown=min(cooldown, 1 - warmup), every=every),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
    st.integers(1, 40),
)


@pytest.fixture(scope="module")
def graph() -> PruningGraph:
    return trace(build_model("llama").config)


@pytest.fixture(scope="module")
def coarse() -> PruningGraph:
    """Two KV groups that cost as much as 64 channels each."""
    return trace(build_model("llama", num_key_value_heads=2, intermediate_size=512).config)


def test_shares_are_the_cubic_curve() -> None:
    events = Schedule(warmup=0.1, cooldown=0.4, every=5).events(200)
    # Eq. 1 of Zhu & Gupta with s_i = 0, s_f = 1, n = 21 prunings between steps 20 and 120
    expected = [(20 + 5 * i, 1 - (1 - (i + 1) / 21) ** 3) for i in range(21)]
    assert [step for step, _ in events] == [step for step, _ in expected]
    assert [share for _, share in events] == pytest.approx([share for _, share in expected], abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(schedule=schedules, steps=st.integers(1, 500))
def test_events_start_after_warmup_rise_and_end_whole_before_cooldown(schedule: Schedule, steps: int) -> None:
    events = schedule.events(steps)
    times, shares = [step for step, _ in events], [share for _, share in events]
    assert times == sorted(set(times))
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == 1
    first = max(1, round(schedule.warmup * steps))
    assert times[0] == first
    assert times[-1] == max(first, round((1 - schedule.cooldown) * steps))
    assert 1 <= times[0] <= times[-1] <= steps
    assert all(after - before <= schedule.every for before, after in itertools.pairwise(times))


@settings(max_examples=200, deadline=None)
@given(
    schedule=schedules,
    steps=st.integers(1, 300),
    groups=st.integers(1, 4),
    channels=st.integers(1, 64),
)
def test_the_ramp_follows_the_curve_of_cost(
    graph: PruningGraph, schedule: Schedule, steps: int, groups: int, channels: int
) -> None:
    shares = [share for _, share in schedule.events(steps)]
    target = uniform(groups, channels)
    path = ramp(graph, target, shares)
    assert path[-1] == target
    for before, after in zip([uniform(4, 64), *path], path, strict=False):
        assert after["kv_groups"] <= before["kv_groups"]
        assert after["mlp_channels"] <= before["mlp_channels"]
    units = {kind: sum(graph.unit_parameters(d) for d in graph.of_kind(kind)) for kind in Kind}
    dense, least = graph.parameters(), graph.parameters(graph.uniform(target))
    for share, counts in zip(shares, path, strict=True):
        wanted = dense - share * (dense - least)
        actual = graph.parameters(graph.uniform(counts))
        # One KV group early or half of one late, and the rounding to whole channels.
        assert abs(actual - wanted) <= units[Kind.KV_GROUPS] + units[Kind.MLP_CHANNELS]


def test_channels_alone_follow_the_curve_to_one_channel(graph: PruningGraph) -> None:
    shares = [share for _, share in Schedule(every=1).events(60)]
    for share, counts in zip(shares, ramp(graph, uniform(4, 8), shares), strict=True):
        assert abs((64 - counts["mlp_channels"]) - share * 56) <= 0.5 + 1e-9


@pytest.mark.parametrize("steps", [10, 40, 200, 1000])
def test_a_dimension_of_two_groups_loses_one_long_before_the_end(coarse: PruningGraph, steps: int) -> None:
    """The trap of DESIGN.md: with counts rounded down it would stay whole until the last event."""
    schedule = Schedule()
    events = schedule.events(steps)
    path = ramp(coarse, uniform(1, 256), [share for _, share in events])
    gone = next(step for (step, _), counts in zip(events, path, strict=True) if counts["kv_groups"] == 1)
    first, last = events[0][0], events[-1][0]
    assert gone <= first + max(schedule.every, 0.3 * (last - first))
    assert gone < last or steps == 10


def test_no_event_removes_much_more_than_the_curve_does(coarse: PruningGraph) -> None:
    events = Schedule().events(200)
    path = [uniform(2, 512), *ramp(coarse, uniform(1, 256), [share for _, share in events])]
    sizes = [coarse.parameters(coarse.uniform(counts)) for counts in path]
    group = sum(coarse.unit_parameters(d) for d in coarse.of_kind(Kind.KV_GROUPS))
    total, shares = sizes[0] - sizes[-1], [0.0, *(share for _, share in events)]
    for (before, after), (low, high) in zip(itertools.pairwise(sizes), itertools.pairwise(shares), strict=True):
        assert before - after <= (high - low) * total + group


def test_one_step_removes_everything_at_once(graph: PruningGraph) -> None:
    events = Schedule().events(1)
    assert events == [(1, 1.0)]
    assert ramp(graph, uniform(2, 32), [1.0]) == [uniform(2, 32)]


def test_warmup_and_cooldown_that_fill_everything_give_one_event() -> None:
    assert Schedule(warmup=0.3, cooldown=0.7).events(100) == [(30, 1.0)]


@pytest.mark.parametrize(
    "wrong", [{"warmup": -0.1}, {"cooldown": 1.0}, {"warmup": 0.6, "cooldown": 0.5}, {"every": 0}, {"warmup": 1.0}]
)
def test_impossible_schedules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        Schedule(**wrong)
