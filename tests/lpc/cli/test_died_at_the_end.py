"""A command that died when its output was finished, and the same command again; and two that share a run folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from exporters.files import folder as files
from exporters.files import sha256, swap
from lpc.cli import app as cli

Run = Callable[..., tuple[int, str, str]]
Words = Callable[..., list[object]]


class Died(BaseException):
    """What nobody catches."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``lpc`` with the given words; returns exit code, standard output and standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lpc", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def words(tiny_model_folder: Path, text_file: Path, tmp_path: Path) -> Callable[..., list[object]]:
    """The words of a short run."""

    def asked(steps: int = 0, samples: int = 4, out: str = "out") -> list[object]:
        short = ["--ratio", 0.3, "--steps", steps, "--criterion", "magnitude", "--no-compensate", "--samples", samples]
        named = ["--data", text_file, "--sequence-length", 32, "--no-onnx", "--out", tmp_path / out]
        return ["compress", tiny_model_folder, *short, *named]

    return asked


def die_before_the_exchange(words: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    def die(work: Path, place: Path) -> None:
        if (work / swap.READY).exists():
            raise Died
        swap.settle(work, place)

    with monkeypatch.context() as patched, pytest.raises(Died):
        patched.setattr(files, "settle", die)
        patched.setattr("sys.argv", ["lpc", *map(str, words)])
        cli.main()


@pytest.mark.parametrize("force", [False, True])
def test_the_same_command_puts_the_finished_output_in_its_place_and_ends_well(
    run: Run, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, force: bool
) -> None:
    again = [*words(), "--force"] if force else words()
    if force:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("1")
    die_before_the_exchange(again, monkeypatch)
    finished = sha256(tmp_path / ".out.lpc" / "new" / "hf" / "model.safetensors")
    code, out, err = run(*again)
    assert (code, err) == (0, "")
    assert " ".join(out.split()).endswith("out is finished, by this very recipe: nothing is left to do")
    assert sha256(tmp_path / "out" / "hf" / "model.safetensors") == finished
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]
    assert (tmp_path / "out" / "mine").exists() is force


@pytest.mark.parametrize("force", [False, True])
def test_another_command_is_refused_or_replaces_it_when_forced(
    run: Run, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, force: bool
) -> None:
    die_before_the_exchange(words(), monkeypatch)
    finished = sha256(tmp_path / ".out.lpc" / "new" / "plan.json")
    code, _, err = run(*words(samples=5), *(["--force"] if force else []))
    assert ("differs in samples (4 there, 5 here)" in " ".join(err.split())) is not force
    assert code == (0 if force else 2)
    assert (sha256(tmp_path / "out" / "plan.json") == finished) is not force


@pytest.mark.parametrize("as_json", [False, True])
def test_the_same_export_ends_well_and_another_is_told_what_lies_there(
    run: Run, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, as_json: bool
) -> None:
    words = ["export", tiny_model_folder, "--out", tmp_path / "onnx"]
    die_before_the_exchange(words, monkeypatch)
    code, out, err = run(*words, *(["--json"] if as_json else []))
    assert (code, err) == (0, "")
    assert ("model.onnx" in json.loads(out)["files"]) if as_json else ("by this very command" in " ".join(out.split()))
    assert (tmp_path / "onnx" / "model.onnx").is_file()
    assert run(*words)[0] == 2  # by now it is an output like any other


def test_an_export_of_something_else_is_told_that_an_output_is_there_by_now(
    run: Run, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    words = ["export", tmp_path / "model", "--out", tmp_path / "onnx"]
    die_before_the_exchange(words, monkeypatch)
    (tmp_path / "model" / "config.json").touch()
    code, _, err = run(*words)
    assert code == 2
    assert "what lies there was finished by a run that died, and is put in its place by now" in " ".join(err.split())


def test_the_same_application_of_a_plan_ends_well(
    run: Run, words: Words, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*words())[0] == 0
    again = ["apply", tmp_path / "out" / "plan.json", tiny_model_folder, "--out", tmp_path / "again"]
    die_before_the_exchange(again, monkeypatch)
    code, out, err = run(*again)
    assert (code, err) == (0, "")
    assert "by this very command" in " ".join(out.split())
    weights = [tmp_path / name / "hf" / "model.safetensors" for name in ("out", "again")]
    assert sha256(weights[0]) == sha256(weights[1])


def test_a_run_folder_of_one_s_own_is_held_goes_with_the_output_and_keeps_what_is_not_lpc_s(
    run: Run, words: Words, tmp_path: Path
) -> None:
    own = tmp_path / "kept"
    command = [sys.executable, "-m", "lpc", *map(str, words(400)), "--save-every", "1", "--checkpoints", str(own)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as first:
        while first.poll() is None and not list(own.glob("*-tune/checkpoint-2/lpc_whole.json")):
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGSTOP)
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "config.json").write_text("{}")
        second = [tmp_path / "broken", *words(1, out="other")[2:]]
        code, _, err = run("compress", *second, "--checkpoints", own)  # before the model is looked at
        first.kill()
        first.communicate()
    assert code == 2
    said = " ".join(err.split())
    assert f"the run folder {own} is being written by process {first.pid} on " in said
    assert f"which holds the lock {own / 'lock'}: wait for it, or choose another folder" in said
    (own / "mine").write_text("1")
    code, _, err = run(*words(), "--checkpoints", own, "--fresh")
    assert (code, err) == (0, "")
    assert [path.name for path in own.iterdir()] == ["mine"]
