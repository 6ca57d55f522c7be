"""Which formats the command line writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporters.options import names_in
from lpc.cli import app as cli
from lpc.options import OutputOptions
from passes.errors import OptionError


@pytest.mark.parametrize(
    ("names", "onnx", "expected"),
    [
        (None, True, ("hf", "onnx")),
        (None, False, ("hf",)),
        ("onnx", True, ("onnx",)),
        ("onnx, hf", True, ("onnx", "hf")),
        ("hf,onnx", False, ("hf",)),
    ],
)
def test_formats_are_named_or_left_out(names: str | None, onnx: bool, expected: tuple[str, ...]) -> None:
    said: dict[str, Any] = {} if names is None else {"export": names_in(names)}
    assert OutputOptions(onnx=onnx, **said).exports == expected


@pytest.mark.parametrize(("names", "onnx"), [("", True), ("onnx", False)])
def test_no_format_at_all_is_refused(names: str, onnx: bool) -> None:
    with pytest.raises(OptionError, match="at least one format"):
        _ = OutputOptions(export=names_in(names), onnx=onnx).exports


@pytest.mark.parametrize(
    "command", [["compress", "model", "--data", "text.txt", "--ratio", "0.3"], ["apply", "plan.json", "model"]]
)
def test_an_unknown_format_exits_2_before_any_work(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lpc", *command, "--export", "hf,gguf"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "unknown --export 'gguf': choose one of hf, onnx" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
