from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import build_model, build_tokenizer

import lpc
from exporters.onnx import export_streamed, why_not_streamed
from exporters.onnx.pieces import Pieces
from exporters.options import OnnxOptions
from lpc.exporting import export_each
from lpc.source import find_unloaded
from passes.errors import PostconditionError, UnsupportedModelError

SHARDS = "60KB"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded bf16 checkpoint whose head is its embedding, with heads that GroupQueryAttention rotates."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = build_model("llama", head_dim=16, tie_word_embeddings=True).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=SHARDS)
    build_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def test_a_streamed_package_is_the_loaded_one_byte_for_byte(checkpoint: Path, tmp_path: Path) -> None:
    for attention in ("gqa", "plain"):
        symmetric = attention == "gqa"
        precisions = ("fp16", "int4") if symmetric else ("bf16", "int4")
        options = OnnxOptions(precision=precisions, attention=attention, symmetric=symmetric, greedy_prompts=0)
        kinds = {}
        for way in ("yes", "no"):
            out = tmp_path / f"{attention}-{way}"
            packages = export_each(checkpoint, out, options, streamed=way)
            files = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
            kinds[way] = (files, [(each.parameters, each.kv_bytes_per_token, each.route) for each in packages])
            exact = [p.value for each in packages for p in each.parity if p.name.startswith("onnx prefill")]
            assert max(exact) < 1e-2
        assert kinds["yes"] == kinds["no"]


@pytest.mark.parametrize(("free", "case"), [(1, "onnx prefill, padded on both sides"), (10**15, "onnx prefill")])
def test_auto_streams_where_the_loaded_model_would_not_fit(
    free: int, case: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    package = lpc.export(checkpoint, tmp_path / "onnx", OnnxOptions(precision=("fp32",), greedy_prompts=0))
    assert package.parity[0].name == case


def test_windows_stream_too(tmp_path: Path) -> None:
    model = build_model("mistral", sliding_window=6)
    model.save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    (package,) = export_each(tmp_path / "model", tmp_path / "onnx", OnnxOptions(precision=("fp32",)), streamed="yes")
    assert [p.name for p in package.parity] == ["onnx prefill, padded on both sides", "onnx decode, left padding"]
    assert max(p.value for p in package.parity) < 5e-6


def test_the_model_is_on_the_meta_device_before_and_after_it_computes(checkpoint: Path) -> None:
    source, _ = find_unloaded(checkpoint)
    whole = lpc.load(checkpoint).float()
    source.model.model.rotary_emb = type(source.model.model.rotary_emb)(config=source.model.config)
    ids = torch.arange(8)[None]
    with source.computing(torch.float32) as model, torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)
    assert {parameter.device.type for parameter in source.model.parameters()} == {"meta"}


def test_a_layer_that_computes_something_else_is_found(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Pieces, calls: object, right: object = Pieces.__call__) -> object:
        answers = right(self, calls)  # type: ignore[operator]
        answers[1]["present.1.value"][..., 0] *= 1.1
        return answers

    monkeypatch.setattr(Pieces, "__call__", wrong)
    with pytest.raises(PostconditionError, match=r"decode, left padding.*present\.1\.value"):
        export_each(checkpoint, tmp_path / "onnx", OnnxOptions(precision=("int4",)), streamed="yes")
    assert not (tmp_path / "onnx").exists()


def test_what_needs_the_whole_model_is_refused_with_the_reason(checkpoint: Path, tmp_path: Path) -> None:
    source, tokenizer = find_unloaded(checkpoint)
    assert why_not_streamed(source.model, OnnxOptions()) is None
    with pytest.raises(UnsupportedModelError, match=r"torch\.onnx traces it"):
        export_streamed(source, tokenizer, tmp_path / "onnx", OnnxOptions(route="torch"))
    text = tmp_path / "text.txt"
    text.write_text("a text to choose codes on " * 200)
    with pytest.raises(UnsupportedModelError, match="goes through the whole graph"):
        export_streamed(source, tokenizer, tmp_path / "onnx", OnnxOptions(precision=("int4",), calibration=text))
