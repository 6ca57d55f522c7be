"""The whole command line with ONNX, once: compress, export, benchmark, evaluate; what people load is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import zoo
from transformers import AutoModelForCausalLM

import lpc
from exporters.files import hashes, sealed
from lpc import cli
from lpc.evaluation import evaluate
from lpc.exporting import export
from lpc.options import BenchmarkOptions, EvaluateOptions
from lpc.report import record
from lpc.speed import benchmark

FILES = {"plan.json", "scores.safetensors", "lpc.json", "report.md", "report.html", "recipe.yaml"}


@pytest.fixture(scope="module")
def out(tiny_model_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    tune = lpc.TuneOptions(steps=3, batch_size=2)
    text = lpc.DataOptions(sequence_length=32)
    lpc.compress(tiny_model_folder, data=text_file, ratio=0.3, tune=tune, data_options=text).save(folder)
    return folder


def test_save_leaves_the_whole_contract(out: Path) -> None:
    assert {p.name for p in out.iterdir()} == {"hf", "onnx", "adapter", *FILES}
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "config.json", "tokenizer.json"} <= {
        path.name for path in (out / "onnx").iterdir()
    }
    manifest = json.loads((out / "lpc.json").read_text())
    assert manifest["passes"][-1]["name"] == "export"
    exported = {name: parity for name, parity in manifest["parity"].items() if parity["tolerance"] == 1e-4}
    assert len(exported) >= 5
    assert all(parity["value"] <= 1e-4 for parity in exported.values())


def test_hf_folder_loads_where_lpc_cannot_be_imported(out: Path) -> None:
    code = (
        "import sys; sys.modules.update(lpc=None, passes=None, exporters=None)\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(out / 'hf')!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(out / 'hf')!r})\n"
        "print(model.config.num_key_value_heads, tokenizer.eos_token_id)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["2", "256"]


def test_onnxruntime_computes_what_stock_transformers_computes(out: Path) -> None:
    session = onnxruntime.InferenceSession(out / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    model = AutoModelForCausalLM.from_pretrained(out / "hf")
    ids = torch.arange(40, 60).reshape(2, 10)
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(10).repeat(2, 1)}
    arrays = {name: value.numpy() for name, value in feeds.items()}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            assert value.shape == ["batch_size", 2, "past_sequence_length", 8]
            arrays[value.name] = np.zeros((2, 2, 0, 8), np.float32)
    logits = session.run(["logits"], arrays)[0]
    with torch.no_grad():
        expected = model(ids).logits.numpy()
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_export_command_gives_the_same_graph_for_the_saved_checkpoint(out: Path, tmp_path: Path) -> None:
    package = export(out / "hf", tmp_path / "again")
    assert package.folder == tmp_path / "again"
    assert (tmp_path / "again/model.onnx.data").read_bytes() == (out / "onnx/model.onnx.data").read_bytes()


def test_benchmark_and_evaluation_go_into_the_report(out: Path, text_file: Path) -> None:
    options = BenchmarkOptions(repeats=1, warmup=0, batches=(1,), prefill_tokens=(8,), decode_pasts=(8,))
    benchmark(out, out / "onnx", options)
    evaluation = evaluate(out, EvaluateOptions(text=text_file, limit=2))
    evaluation.write(out / "eval.json")
    record(out)
    report = (out / "report.md").read_text()
    assert "decode, batch 1, 1 token, past 8" in report
    assert "dense hf | pruned hf | pruned onnx | pruned genai" in report
    assert set(json.loads((out / "lpc.json").read_text())["files"]) >= {"benchmark.json", "eval.json"}


def test_export_without_tokenizer_is_refused_and_writes_nothing(out: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(out / "hf")
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(lpc.TokenizerError, match="no tokenizer"):
        export(tmp_path / "bare", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_image_classifier_is_exported_with_its_image_processor_and_no_tokenizer(tmp_path: Path) -> None:
    model = zoo.build("vit", num_hidden_layers=1)
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    package = export(tmp_path / "hf", tmp_path / "onnx")
    assert (package.kind, package.folder) == ("single", tmp_path / "onnx")
    assert {"model.onnx", "config.json", "preprocessor_config.json"} <= set(package.files)
    assert "genai_config.json" not in package.files
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    batch = zoo.inputs(model, zoo.ZOO["vit"])
    logits = session.run(["logits"], {"pixel_values": batch["pixel_values"].numpy()})[0]
    with torch.no_grad():
        assert np.abs(logits - model(**batch).logits.numpy()).max() <= 1e-5


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(out, tmp_path / "copy"))


def failure(folder: Path, *, parity: bool = False) -> tuple[str, str, str]:
    """Check, part and words of the verdict that fails; it is the last one."""
    found = lpc.verify(folder, parity=parity)
    assert not found.passed
    assert [each.outcome for each in found.checks].index("fails") == len(found.checks) - 1
    return found.checks[-1].check, found.checks[-1].part, found.checks[-1].says


def flip(path: Path, position: int = -2) -> None:
    """Change one bit of one byte."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_verify_holds_of_what_was_written_and_each_part_of_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = lpc.verify(copy)
    assert {each.outcome for each in found.checks} == {"holds"}
    assert [each.check for each in found.checks[:7]] == [
        *("manifest", "files", "files", "plan", "graphs", "configuration", "checkpoint")
    ]
    assert "genai greedy tokens" in found.checks[-1].says
    for part in ("hf", "onnx"):
        assert {each.outcome for each in lpc.verify(copy / part, parity=False).checks} == {"holds"}
    run_command("verify", str(copy), "--no-parity", "--json")
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_verify_finds_one_changed_bit_in_any_file(copy: Path) -> None:
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    assert len(files) > 15
    for path in files:
        for position in (1, path.stat().st_size // 2, -2):
            content = path.read_bytes()
            flip(path, position)
            assert path.name in failure(copy)[2], (path, position)
            path.write_bytes(content)
    assert lpc.verify(copy, parity=False).passed


def test_verify_of_a_package_alone_finds_one_changed_bit(copy: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(copy / "onnx", tmp_path / "alone"))
    outcomes = {each.check: each.outcome for each in lpc.verify(package).checks}
    assert outcomes["files"] == outcomes["graphs"] == "holds"
    assert outcomes["plan"] == outcomes["parity"] == "not checked"
    for path in sorted(package.iterdir()):
        flip(path)
        assert path.name in failure(package)[2]
        flip(path)


def test_verify_finds_what_was_added_or_is_gone(copy: Path) -> None:
    (copy / "notes.py").write_text("mine")
    assert lpc.verify(copy, parity=False).passed
    (copy / "hf/chat_template.jinja").write_text("{{ messages }}")
    assert failure(copy) == ("files", ".", "hf/chat_template.jinja was added after lpc wrote the folder")
    (copy / "hf/chat_template.jinja").unlink()
    (copy / "onnx/model.onnx.data").unlink()
    assert failure(copy) == ("files", ".", "onnx/model.onnx.data is missing, or is no file")


def test_verify_finds_what_hashes_cannot(copy: Path) -> None:
    """New hashes for wrong contents: graphs, configurations, plan and weights are held against one another."""
    described = (copy / "onnx/genai_config.json").read_text()
    for right, wrong, check in (
        ('"head_size": 8', '"head_size": 16', "configuration"),
        ("present.%d.key", "present.%d.kex", "configuration"),
    ):
        assert right in described
        (copy / "onnx/genai_config.json").write_text(described.replace(right, wrong))
        assert failure(signed(copy))[0] == check
    (copy / "onnx/genai_config.json").write_text(described)
    plan = (copy / "plan.json").read_text()
    (copy / "plan.json").write_text(plan.replace('"criterion": "', '"criterion": "x'))
    assert failure(signed(copy))[:2] == ("plan", "onnx")
    (copy / "plan.json").write_text(plan)
    model = AutoModelForCausalLM.from_pretrained(copy / "hf")
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    model.save_pretrained(copy / "hf")
    assert failure(signed(copy), parity=True)[:2] == ("parity", "onnx")


def signed(folder: Path) -> Path:
    """The hashes of the files as they are, by a forger."""
    values = json.loads((folder / "onnx/provenance.json").read_text())
    values["files"] = hashes(folder / "onnx", values["files"])
    (folder / "onnx/provenance.json").write_text(sealed(values))
    record(folder)
    return folder


def test_verify_of_a_family_looks_at_each_model(copy: Path, tmp_path: Path) -> None:
    family = tmp_path / "family"
    for ratio in ("0.3", "0.5"):
        shutil.copytree(copy, family / ratio)
    (family / "family.json").write_text("{}")
    found = lpc.verify(family, parity=False)
    assert {each.part for each in found.checks if each.check == "manifest"} == {"0.3", "0.5"}
    assert [each.part for each in found.checks if each.outcome == "not checked"] == ["."]
    flip(family / "0.5/hf/config.json")
    assert failure(family)[:2] == ("files", "0.5")


def test_verify_says_what_an_older_lpc_left_unchecked(copy: Path) -> None:
    (copy / "onnx/provenance.json").unlink()
    values = json.loads((copy / "lpc.json").read_text())
    del values["files"], values["seal"]
    (copy / "lpc.json").write_text(json.dumps(values))
    found = lpc.verify(copy, parity=False)
    assert found.passed
    assert [each.outcome for each in found.checks] == ["not checked"] * 4 + ["holds"] * 3
    with pytest.raises(lpc.MissingFileError):
        lpc.verify(copy / "adapter")


def test_verify_command_says_a_verdict_a_line_and_ends_with_1(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(copy / "onnx/tokenizer.json")
    assert run_command("verify", str(copy)) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("holds        manifest .: ")
    assert second.startswith("fails        files .: onnx/tokenizer.json was changed: its sha256 is ")


def test_an_export_into_an_output_is_what_its_manifest_says_from_then_on(copy: Path) -> None:
    before = (copy / "onnx/model.onnx").read_bytes()
    export(copy / "hf", copy / "onnx", force=True)
    assert (copy / "onnx/model.onnx").read_bytes() == before
    assert lpc.verify(copy, parity=False).passed


def run_command(*words: str) -> int:
    """The exit code of a command of ``lpc``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lpc", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return int(stop.value.code or 0)
