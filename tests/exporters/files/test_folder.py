from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from exporters.files import (
    Owned,
    claimed,
    folder,
    put_in_place,
    run_folder,
    sha256,
    staged_folder,
    swap,
)
from exporters.files.folder import check_output
from passes.errors import OutputError, OutputExistsError

ROOT = Path(__file__).parents[3]
OWNED = Owned(
    names=frozenset({"onnx", "hf", "plan.json", "compensation.safetensors", "lpc.json"}),
    is_made=lambda folder: (folder / "lpc.json").is_file(),
)


def _python(*words: str, wait: bool = True) -> subprocess.Popen[str]:
    run = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if wait:
        run.wait(300)
    return run


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


def _old_output(out: Path) -> None:
    (out / "onnx").mkdir(parents=True)
    (out / "onnx" / "model.onnx").write_text("old")
    for name in ("plan.json", "compensation.safetensors", "lpc.json"):
        (out / name).write_text("old")
    (out / "data" / "deep").mkdir(parents=True)
    (out / "data" / "deep" / "rows").write_text("mine")
    (out / "notes.txt").write_text("mine")
    (out / "link").symlink_to("notes.txt")


def test_staged_folder_replaces_its_own_and_keeps_foreign_files_when_forced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _old_output(out)
    inode = (out / "data" / "deep" / "rows").stat().st_ino
    with staged_folder(out, force=True, owned=OWNED) as stage:
        (stage / "plan.json").write_text("new")
    assert (out / "plan.json").read_text() == "new"
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "link").readlink() == Path("notes.txt")
    assert (out / "data" / "deep" / "rows").stat().st_ino == inode
    assert _names(out) == {"notes.txt", "plan.json", "data", "link"}
    assert _names(tmp_path) == {"out"}


def test_staged_folder_refuses_to_replace_what_another_wrote_under_its_names(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _old_output(out)
    (out / "lpc.json").unlink()
    with pytest.raises(OutputExistsError, match=r"compensation\.safetensors was not written by this command"):
        check_output(out, force=True, owned=OWNED)
    with pytest.raises(OutputExistsError, match="move it away"), staged_folder(out, force=True, owned=OWNED):
        pass
    assert (out / "plan.json").read_text() == "old"


def test_staged_folder_keeps_the_finished_output_when_its_place_has_changed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=r"changed by someone else meanwhile.* whole in"), staged_folder(out) as stage:
        (stage / "plan.json").write_text("new")
        out.mkdir()
        (out / "x").write_text("theirs")
    kept = tmp_path / ".out.lpc" / "new" / "plan.json"
    assert kept.read_text() == "new"
    assert _names(out) == {"x"}
    with pytest.raises(OutputError, match="whole in"), staged_folder(out, force=True):
        pass
    assert kept.read_text() == "new"


def test_the_run_that_made_an_output_goes_with_it_also_if_that_was_put_in_its_place_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        """What nobody catches."""

    def die(work: Path, place: Path) -> None:
        raise Died

    run = run_folder(tmp_path / "out")
    run.mkdir(parents=True)
    (run / "recipe.json").write_text("{}")
    with pytest.raises(Died), claimed(tmp_path / "out"), monkeypatch.context() as patched:
        patched.setattr(folder, "settle", die)
        with staged_folder(tmp_path / "out", run=run) as stage:
            (stage / "plan.json").write_text("new")
    assert (run / "recipe.json").exists()
    assert put_in_place(tmp_path / "out")
    assert _names(tmp_path) == {"out"}
    assert not put_in_place(tmp_path / "out")


def test_staged_folder_swaps_what_a_link_leads_to(tmp_path: Path) -> None:
    _old_output(tmp_path / "disk" / "real")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    with staged_folder(tmp_path / "out", force=True, owned=OWNED) as stage:
        assert stage.parent.parent == tmp_path / "disk"
        (stage / "plan.json").write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "real" / "plan.json").read_text() == "new"
    assert _names(tmp_path / "disk") == {"real"}


def test_foreign_file_that_comes_while_the_output_is_swapped_is_brought_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    _old_output(out)
    exchange = swap.exchange

    def late(first: Path, second: Path) -> bool:
        (out / "data" / "late").write_text("mine")
        (out / "notes.txt").unlink()
        (out / "notes.txt").write_text("mine, changed")
        return exchange(first, second)

    monkeypatch.setattr(swap, "exchange", late)
    with staged_folder(out, force=True, owned=OWNED) as stage:
        (stage / "plan.json").write_text("new")
    assert (out / "data" / "late").read_text() == "mine"
    assert (out / "notes.txt").read_text() == "mine, changed"
    assert (out / "plan.json").read_text() == "new"


def test_foreign_file_that_cannot_be_linked_is_moved_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    _old_output(out)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with staged_folder(out, force=True, owned=OWNED) as stage:
        (stage / "plan.json").write_text("new")
    assert (out / "data" / "deep" / "rows").read_text() == "mine"
    assert _names(out) == {"notes.txt", "plan.json", "data", "link"}


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("kill", "fresh"), ("kill", "force"), ("kill", "two renames"), ("kill", "no links"), ("fail", "force")],
)
def test_output_is_whole_after_a_stop_before_any_change(mode: str, kind: str) -> None:
    run = _python("tests/exporters/files/kills.py", mode, kind)
    output, errors = run.communicate()
    assert run.returncode == 0, errors[-3000:]
    assert int(output) >= {"kill": 30, "fail": 20}[mode]  # moments


def test_random_runs_with_kills_leave_the_old_or_the_new_output_and_all_foreign_files() -> None:
    run = _python("tests/exporters/files/kills.py", "random", "0")
    output, errors = run.communicate()
    assert run.returncode == 0, errors[-3000:]
    assert int(output) >= 10  # of 40 died


WRITER = """
import sys
from pathlib import Path
from exporters.files.folder import staged_folder
from passes.errors import OutputError
name, rounds, done = sys.argv[2], int(sys.argv[3]), 0
while done < rounds:
    try:
        with staged_folder(Path(sys.argv[1]), force=True) as stage:
            for part in ("a", "b", "c"):
                (stage / part).write_text(f"{name} {done}")
        done += 1
    except OutputError as error:
        assert "is being written by" in str(error), error
"""


def test_two_writers_and_a_reader_see_whole_outputs_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = [_python("-c", WRITER, str(out), name, "15", wait=False) for name in ("first", "second")]
    seen = set()
    while any(run.poll() is None for run in runs):
        seen |= {_one_look(out)}
    errors = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert all(len(texts) <= 1 for texts in seen), seen
    assert len(seen) > 2
    assert _names(tmp_path) == {"out"}


def _one_look(out: Path) -> frozenset[str]:
    """What the three files of the output say, read through one open folder; nothing if it was removed meanwhile."""
    try:
        descriptor = os.open(out, os.O_RDONLY)
    except FileNotFoundError:
        return frozenset()
    try:
        files = [os.open(part, os.O_RDONLY, dir_fd=descriptor) for part in ("a", "b", "c")]
    except FileNotFoundError:
        return frozenset()
    finally:
        os.close(descriptor)
    texts = frozenset(os.read(file, 100).decode() for file in files)
    for file in files:
        os.close(file)
    return texts


def test_second_thread_is_refused(tmp_path: Path) -> None:
    found: list[str] = []

    def write() -> None:
        try:
            with staged_folder(tmp_path / "out"):
                pass
        except OutputError as error:
            found.append(str(error))

    with staged_folder(tmp_path / "out") as stage:
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        (stage / "x").write_text("1")
    assert "another thread" in found[0]
    assert _names(tmp_path / "out") == {"x"}


def test_claim_holds_the_place_through_the_saves_inside_it_and_leaves_nothing(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "out") as place:
        assert place == tmp_path / "a" / "out"
        with staged_folder(tmp_path / "a" / "out") as stage:
            (stage / "x").write_text("1")
        assert _names(tmp_path / "a") == {"out", ".out.lpc"}
    assert _names(tmp_path / "a") == {"out"}
    with pytest.raises(KeyError), claimed(tmp_path / "b" / "c" / "out"):
        raise KeyError("x")
    assert _names(tmp_path) == {"a"}


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
        "import os, signal, sys; from pathlib import Path; from exporters.files.folder import staged_folder\n"
        f"with staged_folder(Path({str(tmp_path / 'out')!r})) as stage:\n"
        "    (stage / 'half').write_text('1'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = _python("-c", code)
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with staged_folder(tmp_path / "out") as stage:
        (stage / "whole").write_text("1")
    assert _names(tmp_path) == {"out"}
    assert _names(tmp_path / "out") == {"whole"}


def test_sha256_equals_hashlib(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_staged_files_get_the_default_mode(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as stage:
        (stage / "x").write_text("1")
        (stage / "x").chmod(0o600)
    (tmp_path / "plain").write_text("1")
    assert (tmp_path / "out" / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
