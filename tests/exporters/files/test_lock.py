from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from exporters.files import claimed, lock, staged_folder
from exporters.files.lock import LOCK, Owner, acquire
from exporters.files.swap import NEW
from passes.errors import OutputError

HOLDER = """
import sys, time
from pathlib import Path
from exporters.files.folder import staged_folder
with staged_folder(Path(sys.argv[1])) as stage:
    (stage / "half").write_text("1")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):  # type: ignore[no-untyped-def]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    run = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == b"held\n"
    yield run
    run.kill()
    run.wait()
    run.stdout.close()


def _left(tmp_path: Path, owner: Owner) -> Path:
    """What a writer left that was killed: its lock, and an unfinished output."""
    work = tmp_path / ".out.lpc"
    (work / NEW).mkdir(parents=True)
    (work / NEW / "half").write_text("1")
    (work / LOCK).write_text(json.dumps(asdict(owner)))
    return work


def test_second_writer_is_refused_and_told_who_writes(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    before = time.perf_counter()
    expected = rf"out is being written by process {holder.pid} on .*, started 20.*: wait for it"
    with pytest.raises(OutputError, match=expected), claimed(tmp_path / "out", force=True):
        pass
    assert time.perf_counter() - before < 1
    assert (tmp_path / ".out.lpc" / NEW / "half").exists()


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    holder.wait()
    with staged_folder(tmp_path / "out") as stage:
        (stage / "whole").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]


def test_output_that_another_host_may_write_is_refused_and_never_removed(tmp_path: Path) -> None:
    work = _left(tmp_path, replace(Owner.here(), host="elsewhere", boot="other", pid=7))
    expected = r"out may be being written by process 7 on elsewhere.*if that process is gone, remove .*\.out\.lpc"
    for _ in range(2):
        with pytest.raises(OutputError, match=expected), claimed(tmp_path / "out", force=True):
            pass
    assert (work / NEW / "half").exists()


def test_output_of_this_host_before_a_reboot_is_removed(tmp_path: Path) -> None:
    _left(tmp_path, replace(Owner.here(), boot="before"))
    with claimed(tmp_path / "out"):
        assert not (tmp_path / ".out.lpc" / NEW).exists()


def test_unfinished_output_of_another_pid_namespace_is_set_aside_and_never_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _left(tmp_path, replace(Owner.here(), pids="pid:[1]", pid=7, started=5.0))
    with staged_folder(tmp_path / "out") as stage:
        (stage / "whole").write_text("1")
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lpc-7-5"}
    assert (tmp_path / ".out.lpc-7-5" / NEW / "half").exists()
    assert "process 7" in caplog.text


def test_lock_that_was_never_signed_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".out.lpc").mkdir()
    (tmp_path / ".out.lpc" / LOCK).write_text("{")
    with claimed(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_process_is_looked_up_where_the_file_system_knows_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_flock", lambda descriptor: None)
    _left(tmp_path, Owner.here())
    with pytest.raises(OutputError, match=f"is being written by process {os.getpid()}"):
        acquire(tmp_path / ".out.lpc", tmp_path / "out")
    (tmp_path / ".out.lpc" / LOCK).write_text(json.dumps(asdict(replace(Owner.here(), started=1.0))))
    taken = acquire(tmp_path / ".out.lpc", tmp_path / "out")
    assert taken.left is not None
    taken.release()


def test_lock_that_its_holder_removes_at_that_moment_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def late(descriptor: int) -> bool:
        if not calls:
            (tmp_path / "work" / LOCK).unlink()
        calls.append(descriptor)
        return True

    monkeypatch.setattr(lock, "_flock", late)
    taken = acquire(tmp_path / "work", tmp_path / "out")
    assert len(calls) == 2
    assert (tmp_path / "work" / LOCK).stat().st_ino == os.fstat(taken.descriptor).st_ino
    taken.release()


def test_released_lock_is_gone_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        taken = acquire(tmp_path / "work", tmp_path / "out")
        taken.sign()
        assert json.loads((tmp_path / "work" / LOCK).read_text())["pid"] == os.getpid()
        taken.release()
        assert not (tmp_path / "work").exists()
