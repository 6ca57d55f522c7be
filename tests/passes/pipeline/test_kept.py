"""What the pipeline keeps of a pass, and reads again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from workbench import build_model

from passes.errors import OptionError
from passes.pipeline import Pass, PassRecord, PassResult, Pipeline, Program, RunContext, plain
from passes.pipeline.kept import DONE, OUTCOME
from passes.pipeline.reading import read_as


@dataclass(frozen=True)
class Inner:
    number: int
    share: float | None


@dataclass(frozen=True)
class Report:
    steps: tuple[tuple[int, float], ...]
    inner: tuple[Inner, ...]
    by_name: Mapping[str, Inner]
    other: Inner | None
    loss: float


REPORT = Report(((1, 0.1), (2, 0.3)), (Inner(3, None),), {"a": Inner(4, 1 / 3)}, None, float("inf"))


@dataclass(frozen=True)
class Counting(Pass):
    """Counts its calls in a file of the user's, and keeps what it is told to."""

    calls: Path
    keeps: bool = True
    size: int = 1
    name = "counting"
    reports = Report

    @property
    def options(self) -> Mapping[str, Any]:
        return {"size": self.size}

    def call(self, program: Program, run: RunContext) -> PassResult:
        assert run.checkpoints is not None
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        (run.checkpoints / "checkpoint-1").mkdir(exist_ok=True)
        with self.calls.open("a") as file:
            file.write("x")
        return PassResult(program, modified=True, report=REPORT)

    def keep(self, after: Program, folder: Path) -> bool:
        (folder / "work").write_text("done")
        return self.keeps


@pytest.fixture(scope="module")
def program() -> Program:
    return Program.start(build_model("llama"))


def run(program: Program, folder: Path, **options: Any) -> PassRecord:
    each = Counting(folder / "calls", **options)
    return Pipeline([each])(program, RunContext(checkpoints=folder)).program.history[-1]


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text())


def test_a_report_is_read_as_it_was() -> None:
    assert read_as(Report, json.loads(json.dumps(plain(REPORT)))) == REPORT


def test_an_outcome_that_is_kept_is_taken_with_its_record(program: Program, tmp_path: Path) -> None:
    first, again = run(program, tmp_path), run(program, tmp_path)
    assert calls(tmp_path) == 1
    assert again == first
    assert {path.name for path in (tmp_path / "00-counting").iterdir()} == {OUTCOME}


def test_a_pass_that_keeps_nothing_is_done_again(program: Program, tmp_path: Path) -> None:
    run(program, tmp_path, keeps=False), run(program, tmp_path, keeps=False)
    assert calls(tmp_path) == 2
    assert not (tmp_path / "00-counting").exists()


@pytest.mark.parametrize("file", ["work", DONE, "more"])
def test_an_outcome_that_is_not_whole_is_made_again(program: Program, tmp_path: Path, file: str) -> None:
    run(program, tmp_path)
    with (tmp_path / "00-counting" / OUTCOME / file).open("a") as damaged:
        damaged.write("}")
    run(program, tmp_path), run(program, tmp_path)
    assert calls(tmp_path) == 2


def test_an_outcome_of_other_options_is_refused_by_name(program: Program, tmp_path: Path) -> None:
    run(program, tmp_path)
    with pytest.raises(OptionError, match="another size"):
        run(program, tmp_path, size=2)
    assert calls(tmp_path) == 1


def test_a_pipeline_in_a_pipeline_keeps_inside_its_own_folder(program: Program, tmp_path: Path) -> None:
    each = Counting(tmp_path / "calls")
    for _ in range(2):
        Pipeline([Pipeline([each]), each])(program, RunContext(checkpoints=tmp_path))
    assert calls(tmp_path) == 2
    assert (tmp_path / "00-pipeline" / "00-counting" / OUTCOME).is_dir()
    assert (tmp_path / "01-counting" / OUTCOME).is_dir()
