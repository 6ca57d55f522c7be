"""What the command line shows of a run: a view on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from lpc.cli import console
from lpc.cli import progress as shown
from lpc.progress import Journey, Leg


def drawn(journey: Journey) -> str:
    terminal = Console(file=io.StringIO(), width=100, force_terminal=False)
    terminal.print(shown.view(journey))
    return terminal.file.getvalue()  # type: ignore[attr-defined]


def test_the_view_has_a_row_a_stage_and_the_whole_run_below() -> None:
    now = [0.0]
    journey = Journey(lambda: now[0])
    assert drawn(journey) == ""
    journey.expect([Leg("measure", 1), Leg("score", 60), Leg("tune", 120), Leg("measure", 1)])
    journey("measure", 0, 1)
    now[0] = 2
    journey("measure", 1, 1)
    journey("score", 0, 1)
    journey("score", 30, 60)
    rows = drawn(journey).splitlines()
    assert [row.split()[0] for row in rows[:-1]] == ["measure", "score"]
    assert "30/60" in rows[1]
    assert "0:00:02" in rows[0]
    assert "whole run 0:00:02 elapsed, about 0:0" in rows[-1]
    journey("score", 60, 60)
    assert "60/60, finishing" in drawn(journey)
    journey("score", 1, 1)
    journey("measure", 0, 1)
    assert "finishing" not in drawn(journey)
    assert "measure 2" in drawn(journey)


def test_without_a_terminal_lines_come_while_a_stage_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "stderr", Console(stderr=True, force_terminal=False, soft_wrap=True))
    monkeypatch.setattr(shown, "TICK_SECONDS", 0.01)
    monkeypatch.setattr("lpc.progress.lines.INTERVAL", 0.05)
    with shown.progress_shown() as progress:
        progress("score", 1, 60)
        threading.Event().wait(0.5)
    said = capsys.readouterr().err.splitlines()
    assert len(said) > 2
    assert all(each.startswith("lpc: score 1/60, 0:00:0") for each in said)


def test_an_interruption_ends_the_command_at_its_next_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shown, "check", asked)
    with pytest.raises(KeyboardInterrupt):
        shown.Checked(Journey())("tune", 1, 2)
