from __future__ import annotations

import json
import logging
import sys

import pytest

import lpc
from lpc.checkup import doctor
from lpc.cli import app, console


def ended(*words: str) -> object:
    with pytest.raises(SystemExit) as found:
        app.app([*words])
    return found.value.code


def test_doctor_sees_what_is_there() -> None:
    found = doctor()
    assert found.is_well
    assert found.devices[0].name == "cpu"
    assert found.auto in {"cpu", "cuda", "mps", "cuda:0"}
    assert "CPUExecutionProvider" in found.providers
    assert found.usable_cores >= 1
    assert found.memory_bytes > 2**28


def test_what_is_missing_is_named_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lpc.checkup.find_spec", lambda name: None if name in ("peft", "lm_eval") else name)
    assert ended("doctor", "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert found["missing"] == {"peft": "lpc needs it", "lm_eval": "lpc evaluate"}
    assert found["is_well"] is False


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"lpc {lpc.__version__}\n"


def test_quiet_leaves_results_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "_quiet", False)
    root = logging.getLogger()
    before = root.level
    try:
        assert ended("--quiet", "recipe", "show") == 0
        assert root.level == logging.ERROR
        assert console._quiet
    finally:
        root.setLevel(before)
    assert "fastest" in capsys.readouterr().out
    assert sys.exc_info() == (None, None, None)


def test_every_command_has_a_twin() -> None:
    commands = {each.name or each.callback.__name__ for each in app.app.registered_commands if each.callback}
    missing = {name for name in commands if not callable(getattr(lpc, name, None))}
    assert missing == {"demo"}
