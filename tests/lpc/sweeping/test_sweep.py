"""Sweeps over a tiny model: cells, early stopping by Optuna, processes, and the report of them all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import lpc
from exporters.files import run_folder
from lpc.cli import app
from lpc.options import Cell, StoppingOptions, SweepOptions
from lpc.progress import share_told
from lpc.sweeping import Outcome, State, SweepFolder, begun, run_cell, slurm_script
from lpc.sweeping.early import judged
from lpc.sweeping.run import processes
from passes.errors import MissingFileError, OptionError, OutputExistsError, StoppedError
from passes.pipeline import Watched

SHARED = {"tune": {"steps": 0}, "run": {"samples": 4, "batch_size": 4}, "data_options": {"sequence_length": 32}}


@pytest.fixture
def asked(tiny_model_folder: Path, text_file: Path) -> dict[str, Any]:
    grid = {"target": {"ratio": [0.2, 0.4]}, "run": {"seed": [0, 1]}}
    return {"model": str(tiny_model_folder), "data": [str(text_file)], "options": SHARED, "grid": grid}


def test_sweep_runs_what_is_not_finished_and_tells_all_in_one_report(asked: dict[str, Any], tmp_path: Path) -> None:
    sweep, folder = SweepOptions(**asked), SweepFolder(path=tmp_path / "out")
    begun(sweep, folder)
    assert [run_cell(sweep, cell, folder).state for cell in sweep.cells[:3]] == [State.FINISHED] * 3
    written = (folder.output(sweep.cells[0]) / "lpc.json").stat().st_mtime_ns
    assert run_cell(sweep, sweep.cells[0], folder).state is State.FINISHED
    assert (folder.output(sweep.cells[0]) / "lpc.json").stat().st_mtime_ns == written
    report = lpc.sweep(asked, folder.path, gather=True)
    assert not report.is_whole
    header, rows = report.rows()
    assert header == ["cell", "removed", "parameters", "perplexity", "state"]
    assert [row[0] for row in rows] == ["dense", *(cell.name for cell in sweep.cells)]
    measured = {name: (run.parameters, run.measures["perplexity"]) for name, run in report.runs.items()}
    beaten = {a for a, x in measured.items() for y in measured.values() if y != x and y[0] <= x[0] and y[1] <= x[1]}
    assert {row[0] for row in rows if row[-1] == "front"} == measured.keys() - beaten
    assert rows[-1][1:] == ["–", "–", "–", "open"]
    assert report.over_seeds()[1][0][:2] == ["ratio 0.2", "2"]
    told = json.loads((folder.path / "sweep.json").read_text())
    assert [cell["outcome"]["state"] for cell in told["cells"]] == ["finished"] * 3 + ["open"]
    assert "4 cells of one grid: 3 finished, 1 open;" in (folder.path / "report.md").read_text()
    assert "ratio-0.2_seed-0/report.html" in (folder.path / "report.html").read_text()


def test_command_of_a_cell_makes_the_same_plan(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, folder = SweepOptions(**asked), SweepFolder(path=tmp_path / "out")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(asked))
    begun(sweep, folder)
    words = folder.command(sweep, sweep.cells[0]).split()[1:]
    app.app([*words[:-3], str(tmp_path / "alone"), *words[-2:]], standalone_mode=False)
    capsys.readouterr()
    place = ["sweep", str(tmp_path / "sweep.yaml"), "--out", str(folder.path)]
    app.app([*place, "--cell", "0", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["state"] == "finished"
    plans = [(each / "plan.json").read_bytes() for each in (tmp_path / "alone", folder.output(sweep.cells[0]))]
    assert plans[0] == plans[1]
    app.app([*place, "--gather", "--json"], standalone_mode=False)
    assert len(json.loads(capsys.readouterr().out)["cells"]) == 4


def test_cell_that_fails_is_told_and_tried_again(asked: dict[str, Any], tmp_path: Path) -> None:
    broken = {**asked, "grid": {"target": {"budget": [{"parameters": 100}]}}}
    sweep, folder = SweepOptions(**broken), SweepFolder(path=tmp_path / "out")
    begun(sweep, folder)
    assert run_cell(sweep, sweep.cells[0], folder).state is State.FAILED
    report = lpc.sweep(sweep, folder.path, gather=True)
    assert "UnreachableBudgetError" in report.cells[0].outcome.why
    assert "UnreachableBudgetError" in (folder.path / "report.md").read_text()
    assert (folder.path / "report.html").is_file()
    assert run_cell(sweep, sweep.cells[0], folder).state is State.FAILED


def test_folder_takes_more_cells_but_no_other_ones(asked: dict[str, Any], tmp_path: Path) -> None:
    folder = SweepFolder(path=tmp_path / "out")
    begun(SweepOptions(**asked), folder)
    begun(SweepOptions(**{**asked, "grid": {"target": {"ratio": [0.2, 0.4, 0.5]}, "run": {"seed": [0, 1]}}}), folder)
    with pytest.raises(OptionError, match=r"ratio-0.2_seed-0.yaml says what this cell was declared as before"):
        begun(SweepOptions(**{**asked, "options": {**SHARED, "lora": {"rank": 4}}}), folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(OutputExistsError, match="holds no sweep"):
        begun(SweepOptions(**asked), SweepFolder(path=tmp_path / "mine"))
    with pytest.raises(MissingFileError, match="nowhere"):
        begun(SweepOptions(**{**asked, "data": ["nowhere.txt"]}), SweepFolder(path=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_hopeless_cell_is_stopped_by_optuna_and_stays_so(asked: dict[str, Any], tmp_path: Path) -> None:
    tuned = {**SHARED, "tune": {"steps": 4, "distill": None, "batch_size": 2}}
    grid = {"target": {"ratio": [0.3]}, "tune": {"learning_rate": [1e-2, 1e-6]}}
    values = {**asked, "options": tuned, "grid": grid, "early_stopping": StoppingOptions(first=2, factor=2)}
    sweep, folder = SweepOptions(**values), SweepFolder(path=tmp_path / "out")
    begun(sweep, folder)
    assert [run_cell(sweep, cell, folder).state for cell in sweep.cells] == [State.FINISHED, State.STOPPED]
    assert "stopped after step 2 of 4" in folder.outcome(sweep.cells[1]).why
    assert run_cell(sweep, sweep.cells[1], folder).state is State.STOPPED
    report = lpc.sweep(sweep, folder.path)
    assert report.is_whole
    assert [cell.outcome.state for cell in report.cells] == ["finished", "stopped"]
    left = {each.name for each in folder.path.iterdir()}
    assert not any(name.startswith((".", "learning_rate-1e-06")) for name in left)


def seen(step: int, loss: float, *, final: bool = True) -> Watched:
    return Watched(step=step, total=100, measures={"loss": loss}, removed=0.3, final=final)


def test_only_cells_of_one_goal_whose_units_are_gone_are_compared(asked: dict[str, Any], tmp_path: Path) -> None:
    first, second, other = (SweepOptions(**asked).cells[number] for number in (0, 1, 2))
    stopping = StoppingOptions(first=1, factor=2)
    with judged(tmp_path / "log", first, stopping) as watch:
        watch(seen(1, 2.0))
    with judged(tmp_path / "log", other, stopping) as watch:
        watch(seen(1, 9.0))
    with (
        pytest.raises(StoppedError, match="stopped after step 2"),
        judged(tmp_path / "log", second, stopping) as watch,
    ):
        watch(seen(1, 9.0, final=False))
        watch(seen(2, 9.0))


def running(asked: dict[str, Any], path: Path, script: str) -> tuple[list[Cell], SweepFolder, Any]:
    sweep, folder = SweepOptions(**asked), SweepFolder(path=path)
    begun(sweep, folder)
    return list(sweep.cells), folder, lambda folder, cell: [sys.executable, "-c", script, cell.name]


def test_processes_run_side_by_side_and_a_silent_end_is_a_failure(
    asked: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells, folder, words = running(asked, tmp_path / "out", "import os; print(os.environ['OMP_NUM_THREADS']); exit(7)")
    with processes(folder, 2, words) as at_work:
        at_work.start(cells[0])
        at_work.start(cells[1])
        assert set(at_work.cells) == {0, 1}
        while at_work.cells:
            at_work.wait()
    assert folder.outcome(cells[0]) == Outcome(state=State.FAILED, why="its process ended with 7")
    assert folder.beside(cells[1], ".log").read_text().strip().isdecimal()
    assert "the sweep goes on" in caplog.text


def test_cells_at_work_tell_how_far_they_are_by_what_they_print(asked: dict[str, Any], tmp_path: Path) -> None:
    said = "lpc: tune 3/4, 0:00:45 elapsed, about 0:00:15 left"
    cells, folder, words = running(asked, tmp_path / "out", f"print({said!r}, flush=True); input()")
    folder.beside(cells[0], ".log").write_text("lpc: tune 1/4, 0:00:01 elapsed, about 0:00:99 left\n")
    with processes(folder, 1, words) as at_work:
        at_work.start(cells[0])
        (cell,) = at_work.cells.values()
        waited = list[float]()
        at_work.wait(lambda: waited.append(share_told(cell.told(folder))))
    assert waited
    assert cell.told(folder).startswith(said)
    assert share_told(cell.told(folder)) == 0.75


HOLDER = """
import sys
from pathlib import Path
from exporters.files import locked
with locked(Path(sys.argv[1]), "a cell"):
    print("held", flush=True)
    input()
"""


def test_cell_of_another_sweep_is_left_to_it(
    asked: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells, folder, words = running(asked, tmp_path / "out", "exit(2)")
    command = [sys.executable, "-c", HOLDER, str(run_folder(folder.output(cells[0])))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with processes(folder, 1, words) as at_work:
            at_work.start(cells[0])
            at_work.wait()
        other.communicate("\n")
    assert folder.outcome(cells[0]) == Outcome(state=State.OPEN)
    assert f"process {other.pid}" in caplog.text


def test_processes_end_with_the_sweep(asked: dict[str, Any], tmp_path: Path) -> None:
    cells, folder, words = running(asked, tmp_path / "out", "import time; time.sleep(600)")
    with pytest.raises(KeyboardInterrupt), processes(folder, 1, words) as at_work:
        at_work.start(cells[0])
        (process,) = (each.process for each in at_work.cells.values())
        raise KeyboardInterrupt
    assert process.poll() == -15


def test_slurm_script_runs_a_task_a_cell(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(asked))
    app.app(["sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out"), "--slurm"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert printed == slurm_script(SweepOptions(**asked), SweepFolder(path=tmp_path / "out"))
    assert "#SBATCH --array=0-3\n" in printed
    assert f'lpc sweep {tmp_path}/out/sweep.yaml --out {tmp_path}/out --cell "$SLURM_ARRAY_TASK_ID"' in printed
    assert SweepOptions.read(tmp_path / "out" / "sweep.yaml") == SweepOptions(**asked)


@pytest.mark.matrix
def test_sweep_of_real_processes(asked: dict[str, Any], tmp_path: Path) -> None:
    told = list[tuple[str, int, int]]()
    report = lpc.sweep(asked, tmp_path / "out", jobs=2, progress=lambda *step: told.append(step))
    assert {(stage, total) for stage, _, total in told} == {("percent of all cells", 100)}
    assert {0, 50, 100} <= {done for _, done, _ in told}  # two cells at once
    assert report.is_whole
    assert all(cell.outcome.state == "finished" for cell in report.cells)
    assert lpc.sweep(asked, tmp_path / "out", jobs=2).to_json() == report.to_json()
