from __future__ import annotations

from pathlib import Path

import pytest

from lpc.cli import app as cli
from lpc.cli.options import exports_of
from passes.errors import OptionError


@pytest.mark.parametrize(
    ("names", "onnx", "expected"),
    [
        (None, True, ("hf", "onnx")),
        (None, False, ("hf",)),
        ("onnx", True, ("onnx",)),
        ("onnx, hf", True, ("hf", "onnx")),
        ("hf,onnx", False, ("hf",)),
    ],
)
def test_formats_are_named_or_left_out(names: str | None, onnx: bool, expected: tuple[str, ...]) -> None:
    assert exports_of(names, onnx) == expected


@pytest.mark.parametrize(("names", "onnx"), [("", True), ("onnx", False)])
def test_no_format_at_all_is_refused(names: str, onnx: bool) -> None:
    with pytest.raises(OptionError, match="at least one format"):
        exports_of(names, onnx)


@pytest.mark.parametrize("command", [["compress", "model", "--data", "text.txt"], ["apply", "plan.json", "model"]])
def test_an_unknown_format_exits_2_before_any_work(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lpc", *command, "--export", "hf,gguf"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "unknown exporter 'gguf': choose one of hf, onnx" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
