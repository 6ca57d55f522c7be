"""How far a run is, and how long it will take, by a clock that the test sets."""

from __future__ import annotations

import logging

import pytest

from lpc.progress import Journey, Leg, Lines, Standing, clocked, expect, logged, share_told, tell_share
from lpc.progress.lines import line
from passes.pipeline import silent


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


PLAN = [Leg("score", 10), Leg("compensate", 20), Leg("tune", 60), Leg("measure", 5), Leg("save", 5)]


def run(journey: Journey, clock: Clock, stage: str, seconds: float, steps: int = 10, until: int | None = None) -> None:
    """A stage as the pipeline and its pass tell it."""
    journey(stage, 0, 1)
    for step in range(1, (until or steps) + 1):
        clock.now += seconds / steps
        journey(stage, step, steps)
    if until is None:
        journey(stage, 1, 1)


def test_nothing_is_known_before_the_stages_are_told() -> None:
    clock = Clock()
    journey = Journey(clock)
    assert journey.standing() is None
    journey("load", 0, 1)
    clock.now += 7
    standing = journey.standing()
    assert standing is not None
    assert (standing.stage, standing.elapsed, standing.left) == ("load", 7, None)


def test_time_left_is_the_nominal_one_at_first_and_follows_the_machine() -> None:
    clock = Clock()
    journey = Journey(clock)
    journey.expect(PLAN)
    journey("score", 0, 1)
    standing = journey.standing()
    assert standing is not None
    assert standing.left == pytest.approx(100)
    run(journey, clock, "score", 30)  # three times as slow
    standing = journey.standing()
    assert standing is not None
    assert standing.left == pytest.approx(3 * 90, rel=0.15)
    run(journey, clock, "compensate", 60)
    standing = journey.standing()
    assert standing is not None
    assert standing.left == pytest.approx(3 * 70, rel=0.06)


@pytest.mark.parametrize("slowness", [0.25, 1, 4])
def test_half_way_through_the_estimate_is_right_whatever_the_speed(slowness: float) -> None:
    clock = Clock()
    journey = Journey(clock)
    journey.expect(PLAN)
    for stage in PLAN[:2]:
        run(journey, clock, stage.name, slowness * stage.seconds)
    run(journey, clock, "tune", slowness * 60, until=5)
    standing = journey.standing()
    assert standing is not None
    assert (standing.done, standing.total) == (5, 10)
    assert standing.left == pytest.approx(slowness * 40, rel=0.1)


def test_a_stage_whose_estimate_was_wrong_goes_by_its_own_pace() -> None:
    clock = Clock()
    journey = Journey(clock)
    journey.expect(PLAN)
    run(journey, clock, "score", 10)
    run(journey, clock, "compensate", 20)
    run(journey, clock, "tune", 600, until=9)  # ten times what was expected
    standing = journey.standing()
    assert standing is not None
    assert 60 < standing.left < 170  # type: ignore[operator]


def test_time_left_falls_while_a_stage_says_nothing() -> None:
    clock = Clock()
    journey = Journey(clock)
    journey.expect(PLAN)
    journey("score", 0, 1)
    before = journey.standing()
    clock.now += 4
    after = journey.standing()
    assert before is not None
    assert after is not None
    assert after.left < before.left  # type: ignore[operator]


def test_stages_that_do_not_come_are_passed_over_and_others_may_come() -> None:
    clock = Clock()
    journey = Journey(clock)
    journey.expect(PLAN)
    run(journey, clock, "tune", 60)
    run(journey, clock, "recall", 3)
    standing = journey.standing()
    assert standing is not None
    assert standing.left == pytest.approx(10, rel=0.1)
    assert [each.name for each in journey.stages] == ["tune", "recall"]


def test_a_stage_that_comes_twice_stands_twice_and_ends_once() -> None:
    clock = Clock()
    journey = Journey(clock)
    journey.expect([Leg("measure", 1), Leg("tune", 8), Leg("measure", 1)])
    run(journey, clock, "measure", 1, steps=1)
    run(journey, clock, "tune", 8)
    run(journey, clock, "measure", 1, steps=1)
    assert [each.name for each in journey.stages] == ["measure", "tune", "measure"]
    assert all(each.ended is not None for each in journey.stages)
    standing = journey.standing()
    assert standing is not None
    assert standing.left == pytest.approx(0, abs=0.1)


def test_lines_come_at_intervals_with_stage_steps_elapsed_and_left() -> None:
    clock, said = Clock(), list[str]()
    lines = Lines(said.append, interval=30, clock=clock)
    expect(lines, PLAN)
    lines("score", 0, 1)
    for step in range(1, 11):
        clock.now += 12
        lines("score", step, 10)
    clock.now += 60
    lines.tick()
    lines.tick()
    assert said[0].startswith("score 3/10, 0:00:36 elapsed, about 0:")
    times = ("0:00:36", "0:01:12", "0:01:48", "0:03:00")
    assert [each.split(",")[1] for each in said] == [f" {time} elapsed" for time in times]


def test_a_share_of_the_whole_tells_what_is_left_from_its_first_percent_on() -> None:
    clock = Clock()
    journey = Journey(clock)
    left = []
    for share in (0.0, 0.009, 0.5):
        clock.now += 10
        tell_share(journey, "percent of all", share)
        standing = journey.standing()
        assert standing is not None
        left.append(standing.left)
    assert left == [None, None, pytest.approx(20.0)]


@pytest.mark.parametrize(("left", "share"), [(None, 0.0), (0.0, 1.0), (5400.0, 0.25)])
def test_a_line_can_be_read_back(left: float | None, share: float) -> None:
    standing = Standing(stage="tune", done=1, total=4, elapsed=1800.0, left=left, now=1800.0)
    assert share_told(f"lpc: {line(standing)}\nlpc: a warning\n") == share


def test_of_several_lines_the_last_one_that_knows_is_read_back() -> None:
    lines = ("about 0:00:30 left", "about 0:00:10 left", "time left not known yet")
    assert share_told("\n".join(f"lpc: tune 1/4, 0:00:30 elapsed, {left}" for left in lines)) == 0.75


def test_python_hears_it_through_the_logger_lpc(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lpc"):
        clock = Clock()
        lines = logged(clock)
        clock.now += 61
        lines("tune", 3, 20)
    assert caplog.messages == ["tune 3/20, 0:01:01 elapsed, time left not known yet"]


def test_a_plain_function_is_told_nothing_of_what_is_to_come() -> None:
    expect(silent, PLAN)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--:--"), (0, "0:00:00"), (59.6, "0:01:00"), (36_061, "10:01:01"), (-3, "0:00:00")]
)
def test_times_are_written_with_hours(seconds: float | None, text: str) -> None:
    assert clocked(seconds) == text
