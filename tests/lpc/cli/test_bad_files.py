"""Files and folders that cannot be used: one whole message with the file and what is wrong, and exit code 2."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lpc.cli import app as cli

UNFINISHED = re.compile(
    r":$|look at the above|Validation error for field '\w+':\s*$|^lpc: \w+: '[^']*'$|cannot be (loaded|read): '[^']*'$"
)
"""A message that ends before its content, points at what is not shown, or is a bare quoted name."""

Spoil = Callable[[Path], None]


def config(**changes: Any) -> Spoil:
    """Change entries of the model's configuration; None removes one."""

    def spoil(model: Path) -> None:
        values = json.loads((model / "config.json").read_text())
        values.update(changes)
        kept = {name: value for name, value in values.items() if value is not None}
        (model / "config.json").write_text(json.dumps(kept))

    return spoil


def text(name: str, content: str) -> Spoil:
    """Replace a file of the model."""

    def spoil(model: Path) -> None:
        (model / name).write_text(content)

    return spoil


def cut(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: len(data) // 2])


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


MODELS: list[tuple[str, Spoil, tuple[str, ...]]] = [
    ("config that is no JSON", text("config.json", "{"), ("config.json",)),
    ("config that is a list", text("config.json", "[]"), ("config.json",)),
    ("config without model_type", config(model_type=None), ("model_type",)),
    ("unknown model_type", config(model_type="nosuch"), ("nosuch",)),
    ("hidden size that is a text", config(hidden_size="wide"), ("hidden_size",)),
    ("hidden size that is negative", config(hidden_size=-4), ()),
    ("layers that are none", config(num_hidden_layers="two"), ("num_hidden_layers",)),
    ("heads that do not divide", config(num_attention_heads=3), ()),
    ("another hidden size", config(hidden_size=64), ()),
    ("unknown activation", config(hidden_act="nosuch"), ("nosuch",)),
    ("unknown rope", config(rope_parameters={"rope_type": "nosuch", "rope_theta": 1e4}), ("nosuch",)),
    ("weights cut short", cut, ("model.safetensors",)),
    ("weights that are text", text("model.safetensors", "not weights"), ("model.safetensors",)),
    ("no weights", without_weights, ("safetensors",)),
    ("tokenizer that is no JSON", text("tokenizer.json", "{"), ("tokenizer",)),
]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["lpc", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return call


def check_whole(code: int, message: str, said: tuple[str, ...]) -> None:
    assert code == 2, message
    assert message.startswith("lpc: ")
    assert "Traceback" not in message
    for line in message.strip().splitlines():
        assert not UNFINISHED.search(line.strip()), line
    for part in said:
        assert part in message, message


@pytest.mark.parametrize(("spoil", "said"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS])
def test_a_model_that_cannot_be_used_is_named_with_the_reason(
    run: Callable[..., tuple[int, str]],
    spoil: Spoil,
    said: tuple[str, ...],
    tiny_model_folder: Path,
    text_file: Path,
    tmp_path: Path,
) -> None:
    model = shutil.copytree(tiny_model_folder, tmp_path / "spoilt")
    spoil(model)
    words = ["--data", text_file, "--ratio", 0.3, "--steps", 0, "--sequence-length", 32, "--out", tmp_path / "new"]
    code, message = run("compress", model, *words)
    check_whole(code, message, ("spoilt", *said))
    assert not (tmp_path / "new").exists()


DATA: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("no JSON", "a.jsonl", '{"text": "a"}\nnot json\n', ("a.jsonl", "2")),
    ("empty", "a.txt", "", ("a.txt", "empty")),
    ("no text field", "a.jsonl", '{"txt": "a"}\n', ("a.jsonl", "text")),
    ("text that is a number", "a.jsonl", '{"text": 3}\n', ("a.jsonl", "text")),
    ("too short", "a.txt", "The cat.", ("32",)),
]


@pytest.mark.parametrize(("name", "content", "said"), [row[1:] for row in DATA], ids=[row[0] for row in DATA])
def test_data_that_cannot_be_used_are_named_with_the_reason(
    run: Callable[..., tuple[int, str]],
    name: str,
    content: str,
    said: tuple[str, ...],
    tiny_model_folder: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / name).write_text(content)
    words = ["--ratio", 0.3, "--steps", 0, "--sequence-length", 32, "--out", tmp_path / "new"]
    code, message = run("compress", tiny_model_folder, "--data", tmp_path / name, *words)
    check_whole(code, message, said)


def test_plans_and_scores_that_cannot_be_read_are_named(
    run: Callable[..., tuple[int, str]], tiny_model_folder: Path, tmp_path: Path
) -> None:
    for content in ("{", "[]", "{}", '{"schema_version": 99}'):
        (tmp_path / "plan.json").write_text(content)
        check_whole(*run("apply", tmp_path / "plan.json", tiny_model_folder, "--out", tmp_path / "new"), ("plan.json",))
        check_whole(*run("diff", tmp_path / "plan.json", tmp_path / "plan.json"), ("plan.json",))
    (tmp_path / "scores.safetensors").write_text("not scores")
    words = ["--importance", tmp_path / "scores.safetensors", "--ratio", 0.3, "--out", tmp_path / "new.json"]
    check_whole(*run("plan", tiny_model_folder, *words), ("scores.safetensors",))
