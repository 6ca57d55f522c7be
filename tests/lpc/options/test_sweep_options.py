from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lpc.options import SweepOptions
from passes.errors import DataError, LpcError, MissingFileError, OptionError
from passes.options import Layout, to_dict

GRID = {"target": {"ratio": [0.1, 0.3], "layout": ["uniform", "per-layer"]}, "run": {"seed": [0, 1]}}


def declared(**changes: Any) -> SweepOptions:
    return SweepOptions(**{"model": "model", "data": ["text.txt"], "grid": GRID, **changes})


def test_cells_are_the_product_of_the_grid_the_last_option_fastest() -> None:
    cells = declared(options={"tune": {"steps": 7}, "run": {"seed": 9, "samples": 4}}).cells
    assert [cell.number for cell in cells] == list(range(8))
    assert cells[0].name == "layout-uniform_ratio-0.1_seed-0"
    assert cells[1].values == {"ratio": 0.1, "layout": "uniform", "seed": 1}
    last = cells[-1].options
    assert (last.target.ratio, last.target.layout, last.run.seed) == (0.3, Layout.PER_LAYER, 1)
    assert {(cell.options.tune.steps, cell.options.run.samples) for cell in cells} == {(7, 4)}


def test_recipe_stands_behind_options_and_grid() -> None:
    grid = {"target": {"ratio": [0.2]}, "tune": {"importance": {"form": ["abs"]}}}
    tune = declared(recipe="loraprune", options={"tune": {"steps": 3}}, grid=grid).cells[0].options.tune
    assert (tune.steps, tune.criterion, tune.importance.form) == (3, "loraprune", "abs")
    assert tune.importance.quadratic is True


def test_cells_of_one_goal_share_it_and_are_looked_at_as_early_stopping_asks() -> None:
    cells = declared(early_stopping=from_plain(first=5)).cells
    assert len({cell.goal for cell in cells}) == 2
    assert cells[0].goal == cells[3].goal != cells[4].goal
    assert {cell.options.tune.heldout_every for cell in cells} == {5}


def from_plain(**values: int) -> Any:
    from lpc.options import StoppingOptions

    return StoppingOptions(**values)


def test_names_do_not_follow_the_order_of_the_file() -> None:
    turned = {name: dict(reversed(GRID[name].items())) for name in reversed(GRID)}
    assert {cell.name for cell in declared(grid=turned).cells} == {cell.name for cell in declared().cells}


def test_options_of_like_names_are_told_apart_and_odd_values_make_plain_names() -> None:
    grid = {
        "tune": {"batch_size": [2], "schedule": [None, {"every": 2}]},
        "run": {"batch_size": [4]},
        "target": {"budget": [{"parameters": 0.5}]},
    }
    names = [cell.name for cell in declared(grid=grid).cells]
    assert names[0] == "budget-parameters-0.5_run.batch_size-4_schedule-null_tune.batch_size-2"
    long = {"target": {"ratio": [0.1]}, "trace": {"depth": [["layers.0.mlp"] * 40]}}
    with pytest.raises(OptionError, match="cell cell-"):
        _ = declared(grid=long).cells


def test_file_is_read_as_the_options_say_it(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("model: m\ndata: [t.txt]\ngrid: {target: {ratio: [1e-1]}}\nearly_stopping: {first: 4}\n")
    found = SweepOptions.read(file)
    assert found.cells[0].options.target.ratio == 0.1
    assert to_dict(found)["early_stopping"] == {"first": 4, "factor": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"targets": {"ratio": [0.1]}}}, "unknown option targets .did you mean 'target'"),
        (
            {"grid": {"target": {"ratioo": [0.1]}}},
            "cell ratioo-0.1: .* target.ratioo .did you mean 'ratio'",
        ),
        ({"options": {"tun": {}}}, "unknown option tun .did you mean 'tune'"),
        ({"grid": {"target": {"ratio": 0.1}}}, "grid.target.ratio must be a list"),
        ({"grid": {"target": {"ratio": []}}}, "grid.target.ratio must be a list"),
        ({"grid": {}}, "grid is empty"),
        ({"grid": [1]}, "grid must hold options"),
        ({"grid": {"target": {"ratio": [0.1, 0.1]}}}, "two cells are called ratio-0.1"),
        ({"grid": {"target": {"ratio": [0.1, 1.5]}}}, "cell ratio-1.5: ratio must be above 0"),
        ({"grid": {"tune": {"steps": [1]}}}, "cell steps-1: target is missing"),
        ({"grid": {"target": {"ratio": list(range(200))}, "run": {"seed": list(range(200))}}}, "more than 10,000"),
        ({"options": {"snapshots": {"ratios": [0.3]}}}, "snapshots make a family"),
        ({"data": "text.txt"}, "data must be a list"),
        ({"export": ["hff"]}, "did you mean 'hf'"),
    ],
)
def test_what_no_cell_can_be_made_of_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        _ = declared(**changes).cells


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, MissingFileError, "no such file"),
        ("a: [", DataError, "the sweep is no YAML"),
        ("- 1", DataError, "a sweep is a mapping"),
        ("model: m\ndata: [t]\ngird: {}", OptionError, "did you mean 'grid'"),
        ("model: m\ndata: [t]", OptionError, "grid is missing"),
        ("model: m\ndata: [t]\ngrid: {}\nearly_stopping: {fist: 1}", OptionError, "early_stopping.fist"),
    ],
)
def test_broken_files_are_refused(text: str | None, error: type[LpcError], message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(error, match=message):
        SweepOptions.read(tmp_path / "sweep.yaml")


def test_cell_is_found_by_number_and_by_name() -> None:
    asked = declared()
    assert asked.cell("3") is asked.cell("layout-per-layer_ratio-0.1_seed-1")
    with pytest.raises(OptionError, match="numbers 0 to 7"):
        asked.cell("8")
