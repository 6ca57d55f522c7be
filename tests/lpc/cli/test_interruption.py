"""Ctrl-C and SIGTERM: one line, the signal's exit code, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from lpc.cli import interruption
from lpc.cli.console import user_errors


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_is_told_in_one_line_and_ends_with_its_code(
    number: signal.Signals,
    code: int,
    word: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = typer.Typer(cls=interruption.Commands)
    app.callback()(lambda: None)

    @app.command()
    def work() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except KeyboardInterrupt as stopped:
            stopped.add_note("kept in F: score; the same command goes on from there")
            raise

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(interruption, "_seen", [])
    monkeypatch.setattr(sys, "argv", ["lpc", "work"])
    try:
        with pytest.raises(SystemExit) as ended, user_errors():
            app()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert ended.value.code == code
    assert capsys.readouterr().err == f"lpc: {word}; kept in F: score; the same command goes on from there\n"


def test_a_signal_that_was_swallowed_is_raised_again_at_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_seen", [])
    interruption.check()
    with pytest.raises(interruption.Terminated):
        interruption._interrupt(signal.SIGTERM, None)
    with pytest.raises(interruption.Terminated):
        interruption.check()


@pytest.mark.matrix
def test_a_command_that_is_terminated_goes_on_and_one_that_is_finished_does_nothing(
    tiny_model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    words = ["compress", str(tiny_model_folder), "--data", str(text_file), "--ratio", "0.3", "--steps", "60"]
    words += ["--sequence-length", "32", "--samples", "8", "--save-every", "2", "--no-onnx", "--out", "out"]
    command, kept = [sys.executable, "-m", "lpc", *words], tmp_path / ".out.lpc" / "run"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(kept.glob("*-tune/checkpoint-2/lpc_whole.json")):
            time.sleep(0.01)
        process.terminate()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert said.splitlines()[-1].startswith(f"lpc: terminated; kept in {kept}: score, ")
    assert not (tmp_path / "out").exists()
    done = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    assert f"going on with the run kept in {kept}: score" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again = subprocess.run(
        [*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True
    )
    assert again.stdout == "out is finished, by this very recipe: nothing is left to do\n"
