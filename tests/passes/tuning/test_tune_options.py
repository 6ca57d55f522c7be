"""What tuning refuses, and what it settles where nothing was said."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from workbench import (
    EVERY_STEP,
    Blocks,
    adapted,
    build_model,
    traced,
    tune,
)

from passes.errors import OptionError, UnreachableBudgetError
from passes.options import ONE_SHOT, ImportanceOptions, Schedule, Target, TraceOptions, TuneOptions
from passes.pipeline import Program
from passes.trace import TracePass
from passes.tuning import TunePass, settled
from passes.tuning.arguments import width_scaled_rate


def test_an_unreachable_ratio_is_told_before_training() -> None:
    with pytest.raises(UnreachableBudgetError, match="largest reachable ratio"):
        tune(adapted(build_model("llama")), ratio=0.95)


def test_an_unknown_learning_rate_schedule_is_refused_when_it_is_said() -> None:
    with pytest.raises(OptionError, match="unknown lr_scheduler 'zigzag': choose one of linear, cosine"):
        TuneOptions(lr_scheduler="zigzag")


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"batch_size": 0},
        {"gradient_accumulation": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"criterion": "nonsense"},
    ],
    ids=str,
)
def test_impossible_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        TuneOptions(**wrong)


def test_a_run_without_steps_is_refused_with_the_pass_that_scores_instead() -> None:
    with pytest.raises(OptionError, match=r"steps=0 trains nothing.*ScorePass"):
        TunePass(Target(ratio=0.3), Blocks(), TuneOptions(steps=0))


@pytest.mark.parametrize("wrong", [{"resume": True}, {"save_every": 5}], ids=str)
def test_checkpoints_without_a_folder_are_refused_and_the_runs_folder_will_do(
    wrong: dict[str, object], tmp_path: Path
) -> None:
    options = TuneOptions(steps=1, batch_size=4, schedule=EVERY_STEP, **wrong)
    with pytest.raises(OptionError, match=next(iter(wrong))):
        TunePass(Target(ratio=0.3), Blocks(), options)(adapted(build_model("llama")))
    options.check_checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("name", "asked", "criterion", "one_shot"),
    [
        ("llama", {}, "obs", True),
        ("llama", {"schedule": Schedule()}, "loraprune", False),
        ("llama", {"schedule": ONE_SHOT}, "obs", True),
        ("mixtral", {}, "loraprune", False),
        ("llama", {"criterion": "taylor"}, "taylor", False),
        ("llama", {"criterion": "obs"}, "obs", True),
        ("llama", {"criterion": "obs", "schedule": Schedule()}, "obs", False),
    ],
)
def test_what_is_left_open_is_settled_by_the_graph(
    name: str, asked: dict[str, object], criterion: str, one_shot: bool
) -> None:
    found = settled(TuneOptions(**asked), traced(zoo.build(name)).traced)
    assert (found.criterion, found.one_shot) == (criterion, one_shot)


def test_whole_layers_are_loraprunes() -> None:
    program = TracePass(TraceOptions(depth="layers"))(Program.start(build_model("llama"))).program
    assert settled(TuneOptions(), program.traced).criterion == "loraprune"


@pytest.mark.parametrize(("layout", "normalised"), [("uniform", True), ("per-layer", False)])
def test_scores_are_normalised_in_the_uniform_layout_only_unless_said(layout: str, normalised: bool) -> None:
    target = Target(ratio=0.3, layout=layout)
    assert TuneOptions().importance_for(target).normalise is normalised
    for chosen in (True, False):
        options = TuneOptions(importance=ImportanceOptions(normalise=chosen))
        assert options.importance_for(target).normalise is chosen


@pytest.mark.parametrize(("hidden", "rate"), [(16, 0.01), (64, 0.01), (1024, 0.00125), (16384, 0.00015625)])
def test_the_default_rate_falls_eightfold_with_sixteen_times_the_width(hidden: int, rate: float) -> None:
    assert width_scaled_rate(hidden) == pytest.approx(rate)
