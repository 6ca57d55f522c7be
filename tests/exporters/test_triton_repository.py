from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import zoo
from conftest import build_model, build_tokenizer
from onnx import TensorProto, helper
from typer.testing import CliRunner

import lpc
from exporters.onnx import BATCH
from exporters.options import OnnxOptions
from exporters.triton import check_servable
from exporters.triton.config import config_text
from lpc.cli.app import app
from passes.errors import OutputExistsError, UnsupportedModelError

QUICK = OnnxOptions(precision=("fp32",), greedy_prompts=0)


def graph_at(folder: Path, logits: list[int | str], kind: int = TensorProto.FLOAT) -> Path:
    """A graph with the inputs and the output of a text classifier."""
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [BATCH, "sequence_length"])
        for name in ("input_ids", "attention_mask")
    ]
    answer = helper.make_tensor_value_info("logits", kind, logits)
    graph = helper.make_graph([helper.make_node("Cast", ["input_ids"], ["logits"], to=kind)], "g", tokens, [answer])
    onnx.save(helper.make_model(graph), folder / "model.onnx")
    return folder / "model.onnx"


def test_a_classifier_is_batched_and_its_dimensions_are_without_the_batch(tmp_path: Path) -> None:
    text = config_text("bert", graph_at(tmp_path, [BATCH, 3], TensorProto.FLOAT16))
    assert text.splitlines() == [
        'name: "bert"',
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        "# Requests of the same lengths are put together to batches of at most this many rows.",
        "max_batch_size: 32",
        "input [",
        '  { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] },',
        '  { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }',
        "]",
        "output [",
        '  { name: "logits" data_type: TYPE_FP16 dims: [ 3 ] }',
        "]",
        "dynamic_batching { }",
    ]


def test_an_output_that_does_not_begin_with_the_batch_is_not_batched(tmp_path: Path) -> None:
    text = config_text("odd", graph_at(tmp_path, ["rows", 3]))
    assert "max_batch_size: 0" in text
    assert "dims: [ -1, 3 ]" in text
    assert "dynamic_batching" not in text


def test_a_type_that_triton_has_no_name_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="logits is of BFLOAT16"):
        config_text("odd", graph_at(tmp_path, [BATCH, 3], TensorProto.BFLOAT16))


def test_a_decoder_says_that_its_cache_goes_with_each_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_model("llama", head_dim=16).save_pretrained(tmp_path / "hf")
    build_tokenizer().save_pretrained(tmp_path / "hf")
    with caplog.at_level(logging.WARNING):
        (package,) = lpc.export_each(tmp_path / "hf", tmp_path / "models", QUICK, format="triton")
    assert "keeps no cache" in caplog.text
    assert package.folder == tmp_path / "models" / "llama" / "1"
    assert (package.folder / "model.onnx.data").is_file()
    text = (tmp_path / "models" / "llama" / "config.pbtxt").read_text()
    session = onnxruntime.InferenceSession(package.folder / "model.onnx", providers=["CPUExecutionProvider"])
    for each in (*session.get_inputs(), *session.get_outputs()):
        dims = ", ".join(str(size if isinstance(size, int) else -1) for size in each.shape)
        kind = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}[each.type]
        assert f'{{ name: "{each.name}" data_type: {kind} dims: [ {dims} ] }}' in text
    assert "max_batch_size: 0" in text
    assert "past_key_values.*, of length 0 with the first" in text
    assert lpc.verify(package.folder)


def test_force_replaces_the_models_and_leaves_the_others_of_the_repository(tmp_path: Path) -> None:
    build_model("llama").save_pretrained(tmp_path / "hf")
    build_tokenizer().save_pretrained(tmp_path / "hf")
    out, several = tmp_path / "models", replace(QUICK, precision=("fp32", "int8"))
    lpc.export_each(tmp_path / "hf", out, several, format="triton")
    assert sorted(path.name for path in out.iterdir()) == ["llama-fp32", "llama-int8"]
    (out / "theirs" / "1").mkdir(parents=True)
    (out / "theirs" / "config.pbtxt").write_text('name: "theirs"\n')
    with pytest.raises(OutputExistsError):
        lpc.export_each(tmp_path / "hf", out, QUICK, format="triton")
    command = [
        "export",
        str(tmp_path / "hf"),
        "--format",
        "triton",
        "--out",
        str(out),
        "--precision",
        "fp32",
        "--force",
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["llama", "theirs"]


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="two graphs"):
        check_servable(zoo.build("t5"), None, OnnxOptions())
