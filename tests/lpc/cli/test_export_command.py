"""The whole command line with ONNX, once: compress, export, benchmark, evaluate; what people load is loaded."""

from __future__ import annotations

import json
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
