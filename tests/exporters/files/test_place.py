from __future__ import annotations

import os
from pathlib import Path

import pytest

from exporters.files import Owned, claimed, place, put_in_place, run_folder
from exporters.files.folder import check_output
from passes.errors import OutputError, OutputExistsError

OWNED = Owned(names=frozenset({"hf", "plan.json"}), is_made=lambda folder: (folder / "plan.json").is_file())


def _output(folder: Path) -> Path:
    (folder / "hf").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    return folder


def test_parents_that_are_missing_are_no_error_and_are_not_made_by_a_check(tmp_path: Path) -> None:
    assert check_output(tmp_path / "a" / "b" / "out", force=False) == tmp_path / "a" / "b" / "out"
    assert list(tmp_path.iterdir()) == []


def test_dangling_link_is_refused_and_the_place_of_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    with pytest.raises(OutputError, match=r"symbolic link to .*real, which is not there"):
        check_output(tmp_path / "out", force=True)
    (tmp_path / "disk" / "real").mkdir(parents=True)
    assert check_output(tmp_path / "out", force=False) == tmp_path / "disk" / "real"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="symbolic link"):
        check_output(tmp_path / "loop", force=True)
    with pytest.raises(OutputError, match="leads back to itself"):
        run_folder(tmp_path / "loop" / "out")


def test_mount_point_is_refused_and_so_is_one_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"/proc is a mount point.*name a folder inside it"):
        check_output(Path("/proc"), force=True)
    monkeypatch.setattr(place, "_mounts", lambda folder: [folder / "hf"])
    with pytest.raises(OutputError, match="mount point inside the output"):
        check_output(_output(tmp_path / "out"), force=True)


def test_names_of_mount_points_are_read_with_blanks() -> None:
    assert place._unescaped(rb"/mnt/my\040disk\134") == b"/mnt/my disk\\"


@pytest.mark.parametrize("name", ["x" * 300, "ü" * 126, "x" * 252])
def test_name_that_is_too_long_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="too long"):
        check_output(tmp_path / name, force=True)
    with pytest.raises(OutputError, match="too long"):
        put_in_place(tmp_path / name)


def test_longest_name_is_written(tmp_path: Path) -> None:
    with claimed(tmp_path / ("x" * 250)):
        pass


def test_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long"):
        check_output(tmp_path.joinpath(*["x" * 200] * 20), force=True)


def test_name_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\\udcff' is no UTF-8"):
        check_output(tmp_path / os.fsdecode(b"\xff"), force=False)


def test_more_than_the_free_space_is_refused(tmp_path: Path) -> None:
    check_output(tmp_path / "out", force=False, needs_bytes=1)
    with pytest.raises(OutputError, match=r"needs about 1,000,000,000,000,000,000 bytes, and there are .* free"):
        check_output(tmp_path / "out", force=False, needs_bytes=10**18)


def test_place_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(OutputError, match=f"cannot write to {tmp_path}"):
        check_output(tmp_path / "a" / "out", force=True)
    monkeypatch.undo()
    with pytest.raises(OutputError, match="could not write"), claimed(Path("/proc/nothing/out")):
        pass


def test_another_users_folder_among_sticky_ones_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _output(tmp_path / "out")
    tmp_path.chmod(0o1777)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(OutputError, match="cannot write to"):
        check_output(tmp_path / "out", force=True)
    check_output(tmp_path / "new", force=True)


def test_file_above_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("1")
    with pytest.raises(OutputError, match=r"x is a file, so there can be no .*out"):
        check_output(tmp_path / "x" / "out", force=True)
    with pytest.raises(OutputError, match="is a file"), claimed(tmp_path / "x" / "out"):
        pass
    with pytest.raises(OutputExistsError, match="is a file"):
        check_output(tmp_path / "x", force=True)


def test_current_folder_and_root_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out" / "sub")
    with pytest.raises(OutputError, match="holds the current folder"):
        check_output(Path(".."), force=True)
    with pytest.raises(OutputError, match="name a folder inside it"):
        check_output(Path("/"), force=True)
    with pytest.raises(OutputError, match="name a folder inside it"):
        run_folder(Path("/"))
    assert check_output(Path("new"), force=False) == tmp_path / "out" / "sub" / "new"


def test_output_that_is_or_lies_inside_what_is_read_is_refused(tmp_path: Path) -> None:
    source = _output(tmp_path / "model")
    with pytest.raises(OutputError, match=r"model is what is read"):
        check_output(source, force=True, owned=OWNED, reads=("gpt2", source))
    with pytest.raises(OutputError, match=r"lies inside what is read"):
        check_output(source / "new", force=True, owned=OWNED, reads=(source,))
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(OutputError, match=r"lies inside what is read"):
        check_output(tmp_path / "link" / "new", force=True, owned=OWNED, reads=(str(source),))


def test_output_that_would_replace_what_is_read_is_refused_and_beside_it_is_not(tmp_path: Path) -> None:
    out = _output(tmp_path / "out")
    for name in ("hf", "plan.json"):
        with pytest.raises(OutputError, match=rf"{name}, lies inside the output .* would be replaced"):
            check_output(out, force=True, owned=OWNED, reads=(out / name,))
    (out / "mine").mkdir()
    check_output(out, force=True, owned=OWNED, reads=(out / "mine",))


def test_what_is_written_besides_must_lie_outside(tmp_path: Path) -> None:
    for other in (tmp_path / "out", tmp_path / "out" / "checkpoints", tmp_path):
        with pytest.raises(OutputError, match="lie inside each other"):
            check_output(tmp_path / "out", force=True, writes=(other,))
    check_output(tmp_path / "out", force=True, writes=(tmp_path / "checkpoints",))
