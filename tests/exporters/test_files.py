from __future__ import annotations

import errno
import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exporters.files import check_output, sha256, staged_folder, write_text
from passes.errors import OutputError, OutputExistsError


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_staged_folder_appears_whole_when_the_block_ends_well(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "a" / "out") as stage:
        (stage / "hf").mkdir()
        (stage / "hf" / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert (tmp_path / "a" / "out" / "hf" / "x").read_text() == "1"
    assert _names(tmp_path / "a") == {"out"}


def test_staged_folder_leaves_nothing_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), staged_folder(tmp_path / "out") as stage:
        (stage / "x").write_text("1")
        raise KeyError("x")
    assert _names(tmp_path) == set()


def test_staged_folder_keeps_the_old_output_when_the_block_fails(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text("old")
    with pytest.raises(KeyError), staged_folder(tmp_path / "out", force=True) as stage:
        (stage / "plan.json").write_text("new")
        raise KeyError("x")
    assert (tmp_path / "out" / "plan.json").read_text() == "old"


def test_staged_folder_replaces_its_own_and_keeps_foreign_files_when_forced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "onnx").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    (out / "plan.json").write_text("old")
    with staged_folder(out, force=True, owned={"onnx"}) as stage:
        (stage / "plan.json").write_text("new")
    assert (out / "plan.json").read_text() == "new"
    assert (out / "notes.txt").read_text() == "mine"
    assert _names(out) == {"notes.txt", "plan.json"}
    assert _names(tmp_path) == {"out"}


def test_disk_full_is_an_output_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="out: No space left on device"), staged_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert _names(tmp_path) == set()


def test_not_empty_folder_is_refused_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("1")
    with pytest.raises(OutputExistsError, match="--force"):
        check_output(tmp_path, force=False)
    check_output(tmp_path, force=True)


def test_file_as_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("1")
    with pytest.raises(OutputExistsError, match="is a file"):
        check_output(tmp_path / "x", force=True)


def test_killed_writer_leaves_no_output_and_its_remains_are_removed_next_time(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from exporters.files import staged_folder\n"
        f"with staged_folder(Path({str(tmp_path / 'out')!r})) as stage:\n"
        "    (stage / 'half').write_text('1'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parent.parent.parent
    run = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with staged_folder(tmp_path / "out") as stage:
        (stage / "whole").write_text("1")
    assert _names(tmp_path) == {"out"}
    assert _names(tmp_path / "out") == {"whole"}


def test_sha256_equals_hashlib(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_write_text_is_whole_or_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"
    with pytest.raises(OutputError, match="could not write"):
        write_text(tmp_path / "absent" / "x", "new")
    assert _names(tmp_path) == {"x"}


def test_staged_files_get_the_default_mode(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as stage:
        (stage / "x").write_text("1")
        (stage / "x").chmod(0o600)
    (tmp_path / "plain").write_text("1")
    assert (tmp_path / "out" / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
