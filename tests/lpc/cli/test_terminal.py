"""What stands on the terminal: rows alike in one, what was asked for, next commands, completion, colours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lpc.cli import app, console
from lpc.cli.alike import alike, spread
from lpc.cli.tables import next_commands, show_difference, show_plan
from lpc.planning import diff
from lpc.report import asked_words
from passes.errors import OptionError
from passes.graph import Plan

LAYERS = 30
BUDGET = {"parameters": 0.8}


def plan(last: int) -> Plan:
    """A uniform plan, whose layers keep not the same units."""
    kept = {f"layers.{i}.mlp_channels": tuple(range(i % 3, 1152 + i % 3)) for i in range(LAYERS)}
    kept |= {f"layers.{i}.kv_groups": (0, 1) for i in range(LAYERS)} | {"hidden": tuple(range(last))}
    fields = {"source": "s", "family": "llama", "layout": "uniform", "budget": BUDGET, "criterion": "obs"}
    return Plan(**fields, options={}, source_parameters=100, target_parameters=80, kept=kept)


def test_rows_that_say_the_same_of_every_layer_are_one() -> None:
    rows = [*((f"layers.{i}.mlp", 4 if i != 2 else 3) for i in range(4)), ("hidden", 8)]
    assert alike(rows) == {"layers.*.mlp (3 alike)": [0, 1, 3], "layers.2.mlp": [2], "hidden": [4]}
    two = [("layers.0.mlp", 3), ("layers.1.mlp", 3), ("layers.2.mlp", 4), ("layers.3.mlp", 4)]
    assert list(alike(two)) == ["layers.*.mlp (2 alike)", "layers.2.mlp to layers.3.mlp (2 alike)"]
    assert (spread([2, 2], "{}"), spread([0.25, 0.5], "{:.2f}")) == ("2", "0.25 to 0.50")


def test_uniform_plans_and_their_difference_have_a_row_a_width(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(plan(8), Path("plan.json"), as_json=False)
    show_difference(diff(plan(8), plan(9)), as_json=False)
    shown = capsys.readouterr().out
    assert shown.count("layers.*.mlp_channels (30 alike)") == 2
    assert shown.count("mlp_channels") == shown.count("kv_groups") == 2
    assert max(map(len, shown.splitlines())) <= 80
    assert " 0.889 " in shown


@pytest.mark.parametrize(
    ("ratio", "budget", "said"),
    [
        (
            {"asked": 0.2, "achieved": 0.2138, "multiple": 64},
            BUDGET,
            "rounded up: MLP widths go in multiples of 64, heads whole",
        ),
        ({"asked": 0.2, "achieved": 0.2001, "multiple": 8}, BUDGET, "asked: a ratio of 0.2"),
        ({"asked": 0.2, "achieved": 0.25, "multiple": None}, BUDGET, "units go whole"),
        ({"asked": None, "achieved": 0.25, "multiple": 8}, {"macs": 0.5}, "asked: at most 50.0% of the MACs a token"),
    ],
)
def test_report_says_the_ratio_that_was_typed_and_what_rounding_made_of_it(
    ratio: dict[str, float | None], budget: dict[str, float], said: str
) -> None:
    words = asked_words({"ratio": ratio, "budget": budget})
    assert words.endswith(said)


def test_columns_that_find_no_room_are_put_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "stdout", Console(width=80))
    verdicts = ["worse by 1.2 ± 0.8 points, p = 0.13"] * 3
    console.print_table(
        "against dense", ["", "pruned hf", "pruned onnx", "int8"], [["arc_easy acc (first 200)", *verdicts]]
    )
    lines = capsys.readouterr().out.splitlines()
    assert sum("worse by 1.2 ± 0.8 points, p = 0.13" in line for line in lines) == 3
    assert sum("arc_easy acc (first 200)" in line for line in lines) == 3
    assert max(map(len, lines)) <= 80


def test_next_commands_can_be_pasted() -> None:
    assert next_commands(Path("my out"), onnx=True, tasks=True)[0] == "lpc benchmark 'my out'"
    assert next_commands(Path("out"), onnx=True, tasks=True, timed=True)[0] == "lpc evaluate out --tasks quick"
    without = next_commands(Path("out"), onnx=False, tasks=False)
    assert without == ["lpc export out/hf --out out-onnx", "lpc compare out ANOTHER"]


def completed(*words: str) -> list[str]:
    """What bash would be offered for the last of the words."""
    environment = {**os.environ, "_LPC_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["lpc", *words])}
    environment["COMP_CWORD"] = str(len(words))
    code = "import sys; sys.argv = ['lpc']; from lpc.cli import main; main()"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return ran.stdout.split()


def test_shell_completes_commands_and_choices() -> None:
    assert completed("comp") == ["compress", "compare"]
    assert completed("compress", "m", "--layout", "u") == ["uniform"]


def test_no_color_leaves_no_colour() -> None:
    code = "from lpc.cli import console; from passes.errors import DataError\n"
    code += "with console.user_errors(): raise DataError('red')"
    shown = {}
    for more in ({}, {"NO_COLOR": "1"}):
        environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", **more}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        shown[bool(more)] = ran.stderr
    assert "\x1b[1;31m" in shown[False]
    assert "31m" not in shown[True]


def test_estimate_says_what_each_preset_costs(tiny_model_folder: Path) -> None:
    words = ["estimate", str(tiny_model_folder), "--ratio", "0.3", "--flops", "1e12"]
    told = json.loads(CliRunner().invoke(app.app, [*words, "--json"]).output)["presets"]
    assert list(told) == ["fast", "default", "best"]
    hours = [each["method"]["hours"] for each in told.values()]
    assert hours == sorted(hours)
    assert hours[0] < hours[2]
    fast = json.loads(CliRunner().invoke(app.app, [*words, "--preset", "fast", "--json"]).output)
    assert fast["method"] == told["fast"]["method"]
    assert fast["presets"] == {}
    both = CliRunner().invoke(app.app, [*words, "--preset", "fast", "--recipe", "best"])
    assert isinstance(both.exception, OptionError)
    assert "leave it or --recipe out" in str(both.exception)
    shown = CliRunner().invoke(app.app, words).output
    assert "--preset" in shown
