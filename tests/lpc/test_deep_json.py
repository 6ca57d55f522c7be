"""JSON of a stranger's that is nested deeper than Python reads is one error, or is passed over, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import lpc
from exporters.calls.calls import _read as read_package
from exporters.files import claimed
from lpc.evaluation.subjects import _read_json
from lpc.report.manifest import _parsed
from lpc.run_folder import _recipe_in
from passes.graph import Plan
from passes.stored import read_json
from passes.tuning.checkpoints import last_whole

DEEP = "[" * 100_000


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    (tmp_path / "deep.json").write_text(DEEP)
    return tmp_path / "deep.json"


@pytest.mark.parametrize(
    "read",
    [Plan.load, read_json, read_package, _read_json, lambda path: _parsed(path, path.read_text())],
    ids=["plan", "configuration", "package", "results", "manifest"],
)
def test_a_file_that_is_asked_for_is_one_error_that_names_it(deep: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(lpc.LpcError, match=r"deep\.json"):
        read(deep)


def test_what_a_run_has_left_is_passed_over(deep: Path, tmp_path: Path) -> None:
    assert _recipe_in(deep) is None
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "lpc_whole.json").write_text(DEEP)
    assert last_whole(tmp_path) is None


def test_what_lies_beside_an_output_is_taken_or_told(tmp_path: Path) -> None:
    work = tmp_path / ".out.lpc"
    work.mkdir()
    (work / "lock").write_text(DEEP)
    with claimed(tmp_path / "out"):
        pass
    work.mkdir(exist_ok=True)
    (work / "ready.json").write_text(DEEP)
    with pytest.raises(lpc.OutputError, match=r"ready\.json is not lpc's.*remove that file"), claimed(tmp_path / "out"):
        pass
