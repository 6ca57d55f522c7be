"""What a command writes, keeps and refuses to replace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import lpc
from exporters.files import UPDATE, claimed, sha256
from exporters.hf import SavePass
from exporters.onnx import ExportPass
from lpc.cli import app as cli
from lpc.cli.output import least_bytes
from lpc.exporting import export
from lpc.owned import OUTPUT
from lpc.report import record

ARTIFACTS = {"adapter", "plan.json", "scores.safetensors", "lpc.json", "report.md", "report.html", "recipe.yaml"}
TUNE = lpc.TuneOptions(steps=3, batch_size=2)
TEXT = lpc.DataOptions(sequence_length=32)


@pytest.fixture(scope="module")
def result(tiny_model_folder: Path, text_file: Path) -> lpc.Result:
    return lpc.compress(tiny_model_folder, data=text_file, ratio=0.3, tune=TUNE, data_options=TEXT)


@pytest.fixture
def out(result: lpc.Result, tmp_path: Path) -> Path:
    result.save(tmp_path / "out", export=["hf"])
    return tmp_path / "out"


def _lpc(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["lpc", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def _tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_checkpoint_is_kept_when_onnx_fails_and_export_goes_on_from_there(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rows = [list(range(i, i + 100)) for i in range(20)]
    result = lpc.compress(tiny_llama, data=rows, ratio=0.3, tune=TUNE, data_options=TEXT)
    with pytest.raises(lpc.TokenizerError, match="no-onnx") as raised:
        result.save(out)
    assert _names(out) == {"hf", *ARTIFACTS}
    (note,) = (note for note in raised.value.__notes__ if "kept" in note)
    assert f"kept in {out}: adapter, hf, lpc.json" in note
    assert f"`lpc export {out / 'hf'} --out {out / 'onnx'}`" in note
    assert "needs its tokenizer" in json.loads((out / "lpc.json").read_text())["missing"]["onnx"]
    assert "## Missing" in (out / "report.md").read_text()
    tiny_tokenizer.save_pretrained(out / "hf")
    export(out / "hf", out / "onnx")
    manifest = json.loads((out / "lpc.json").read_text())
    assert manifest["missing"] == {}
    assert "onnx/model.onnx" in manifest["files"]
    assert "## Missing" not in (out / "report.md").read_text()


@pytest.mark.parametrize(
    "error", [lpc.UnsupportedModelError("no such graph"), KeyboardInterrupt(), OSError(28, "full")]
)
def test_what_is_finished_is_kept_when_a_late_step_stops(
    result: lpc.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(self: ExportPass, program: object, run: object) -> None:
        self.folder.mkdir()
        (self.folder / "half").write_text("1")
        raise error

    monkeypatch.setattr(ExportPass, "call", fail)
    expected = lpc.PassError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised:
        result.save(tmp_path / "out")
    assert _names(tmp_path / "out") == {"hf", *ARTIFACTS}
    assert "missing: onnx" in " ".join(raised.value.__notes__)
    assert _names(tmp_path) == {"out"}


def test_adapter_and_plan_are_kept_when_the_checkpoint_fails_its_proof(
    result: lpc.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SavePass, *_: object) -> None:
        raise lpc.PostconditionError("pass 'save' wrote something else")

    monkeypatch.setattr(SavePass, "ensures", fail)
    with pytest.raises(lpc.PostconditionError) as raised:
        result.save(tmp_path / "out")
    out = tmp_path / "out"
    assert _names(out) == ARTIFACTS
    assert f"`lpc apply {out / 'plan.json'} {result.report.source} --adapter" in " ".join(raised.value.__notes__)
    assert set(json.loads((out / "lpc.json").read_text())["missing"]) == {"hf", "onnx"}


def test_stale_parts_of_an_older_output_are_replaced_and_the_users_files_stay(result: lpc.Result, out: Path) -> None:
    (out / "compensation.safetensors").write_text("stale")
    for stale in ("recovery", "onnx", "0.25"):
        (out / stale).mkdir()
        (out / stale / "stale").write_text("1")
    (out / "0.25" / "lpc.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(lpc.OutputExistsError, match="--force"):
        result.save(out, export=["hf"])
    result.save(out, export=["hf"], force=True)
    assert _names(out) == {"hf", "notes.txt", *ARTIFACTS}
    assert _names(out.parent) == {"out"}


def test_folders_that_another_wrote_are_not_replaced(result: lpc.Result, tmp_path: Path) -> None:
    (tmp_path / "work" / "adapter").mkdir(parents=True)
    (tmp_path / "work" / "adapter" / "mine").write_text("1")
    with pytest.raises(lpc.OutputExistsError, match="adapter was not written by this command"):
        result.save(tmp_path / "work", export=["hf"], force=True)
    assert _names(tmp_path / "work") == {"adapter"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compress", "hf", "--data", "text", "--ratio", "0.2", "--out", ".", "--force"], "would be replaced with it"),
        (["apply", "plan.json", "model", "--out", ".", "--force"], "would be replaced with it"),
        (["apply", "plan.json", "model", "--adapter", "adapter", "--out", "adapter", "--force"], "what is read"),
        (["export", "hf", "--out", "hf", "--force"], "is what is read"),
        (["export", "hf", "--out", "hf/onnx"], "lies inside what is read"),
        (
            ["compress", "model", "--data", "text", "--ratio", "0.2", "--out", "new", "--checkpoints", "new/c"],
            "outside",
        ),
    ],
)
def test_command_that_would_lose_what_it_reads_is_refused_before_any_work(
    out: Path,
    tiny_model_folder: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    places = {"text": text_file, "model": tiny_model_folder}
    mine = {"hf", "plan.json", "adapter", ".", "new", "new/c", "hf/onnx"}
    before = _tree(out)
    assert _lpc(monkeypatch, *(places.get(word, out / word if word in mine else word) for word in words)) == 2
    assert said in capsys.readouterr().err
    assert _tree(out) == before
    assert _names(out.parent) == {"out"}


def test_export_into_the_output_of_its_source_replaces_nothing(out: Path) -> None:
    before = _tree(out)
    export(out / "hf", out, force=True)
    assert before.items() <= _tree(out).items()
    assert (out / "model.onnx").is_file()
    export(out / "hf", out, force=True)  # its own package is
    assert before.items() <= _tree(out).items()


def test_second_command_is_refused_at_its_start(
    tiny_model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from exporters.files.folder import claimed\n"
        f"with claimed(Path({str(tmp_path / 'out')!r})): print('held', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        words = ["compress", tiny_model_folder, "--data", text_file, "--ratio", "0.2", "--out", tmp_path / "out"]
        assert _lpc(monkeypatch, *words) == 2
        holder.send_signal(signal.SIGKILL)
    with claimed(tmp_path / "out", owned=OUTPUT):
        pass
    assert _names(tmp_path) == set()


def test_record_brings_text_report_and_hashes_together(out: Path) -> None:
    (out / UPDATE).write_text(json.dumps({"report.md": "cut short"}))
    (out / "notes.txt").write_text("mine")
    record(out, {"heldout.txt": "new"})
    files = json.loads((out / "lpc.json").read_text())["files"]
    found = {name: each for name, each in _tree(out).items() if name != "lpc.json"}
    assert {name: each["sha256"] for name, each in files.items()} == found
    assert (out / "report.md").read_text() != "cut short"
    before = _tree(out)
    record(out)
    assert _tree(out) == before
    record(out / "hf")
    record(out / "hf", {"eval.json": "{}"})
    assert (out / "hf" / "eval.json").read_text() == "{}"


def test_least_bytes_are_the_kept_weights_in_each_form(tiny_model_folder: Path) -> None:
    weights = (tiny_model_folder / "model.safetensors").stat().st_size
    assert least_bytes(tiny_model_folder, 0.5, onnx=True) == weights
    assert least_bytes(tiny_model_folder, None, onnx=True) == 0
    assert least_bytes("gpt2", 0.5, onnx=False) == 0
