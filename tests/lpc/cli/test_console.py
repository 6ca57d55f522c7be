from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path

import pytest

from lpc.cli import console, main
from passes.errors import ModelError, visible

EVIL = "\x1b]0;owned\x07\x1b[31mred\u202etxt\u2028\x9b1m\ud800"
STEERING = set("\x1b\x07\u202e\u2028\x9b\ud800")


def test_visible_spells_out_what_steers_a_terminal_and_keeps_the_rest() -> None:
    assert visible("a\tb\nc é 漢 ñ") == "a\tb\nc é 漢 ñ"
    assert visible("\x1b[31m") == "\\x1b[31m"
    assert not STEERING & set(visible(EVIL))
    assert "owned" in visible(EVIL)


def test_an_error_as_text_holds_no_control_characters() -> None:
    assert not STEERING & set(str(ModelError(EVIL)))
    assert str(ModelError("plain")) == "plain"


def test_nothing_that_is_printed_holds_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_line(EVIL)
    console.print_table("t", ["a", "b"], [[EVIL, "[bold]1[/]"]])
    with pytest.raises(SystemExit), console.user_errors():
        error = ModelError(EVIL)
        error.add_note(EVIL)
        raise error
    shown = capsys.readouterr()
    assert not STEERING & set(shown.out + shown.err)
    assert "[bold]1[/]" in shown.out


def test_a_warning_on_the_terminal_holds_no_control_characters() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "%s", (EVIL,), None)
    assert not STEERING & set(console._Plain("lpc: %(message)s").format(record))


def test_a_strangers_folder_runs_asks_and_steers_nothing(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((tiny_model_folder / "config.json").read_text())
    values |= {"model_type": "own", "architectures": ["Own\x1b[31m"], "auto_map": {"AutoConfig": "own.C"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("sys.argv", ["lpc", "inspect", str(tmp_path), "--json"])
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert shown.out == ""
    assert "trust_remote_code" in shown.err
    assert "\x1b" not in shown.err
    assert sys.stdin.read() == "y\n"
    assert not (tmp_path / "ran").exists()
