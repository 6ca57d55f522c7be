"""Texts that are written whole, alone or together."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from exporters.files import (
    UPDATE,
    updating,
    write_text,
    write_texts,
)
from exporters.files.folder import finish_update
from passes.errors import OutputError


def test_write_text_is_whole_or_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"
    with pytest.raises(OutputError, match="could not write"):
        write_text(tmp_path / "absent" / "x", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"x"}


def test_write_text_writes_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_texts_that_belong_together_are_finished_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(tmp_path, {"report.md": "old", "lpc.json": "old"})
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "lpc.json"}
    (tmp_path / UPDATE).write_text(json.dumps({"report.md": "new", "lpc.json": "new"}))
    (tmp_path / "report.md").write_text("new")
    (tmp_path / ".lpc.json.partial-1").write_text("ne")
    with updating(tmp_path):
        assert (tmp_path / "lpc.json").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "lpc.json"}
    finish_update(tmp_path)


def test_updates_wait_for_one_another(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with updating(tmp_path):
            order.append("second")

    with updating(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
