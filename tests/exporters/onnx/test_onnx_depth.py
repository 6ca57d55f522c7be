"""ONNX of models without some layers or blocks: onnxruntime and GenAI against torch."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
import zoo
from conftest import build_model, build_tokenizer
from onnx_workbench import difference, run_onnx
from transformers import PreTrainedModel

from exporters.onnx import export_onnx
from exporters.options import OnnxOptions
from passes.graph import PruningGraph
from passes.options import TraceOptions
from passes.shrink import build_compact
from passes.trace import trace

QUICK = OnnxOptions(greedy_prompts=2, greedy_tokens=4)


def shrunk(model: PreTrainedModel, depth: str, *gone: tuple[str, int]) -> tuple[PreTrainedModel, PruningGraph, dict]:
    graph = trace(model.config, torch.float32, options=TraceOptions(depth=depth))
    kept = {d.name: tuple(u for u in range(d.size) if (d.name, u) not in gone) for d in graph.dimensions}
    kept = graph.complete(kept)
    return build_compact(model, graph, kept), graph, kept


@pytest.mark.parametrize("head_dim", [8, 16], ids=["plain", "gqa"])
@pytest.mark.parametrize(
    ("depth", "gone"),
    [("layers", [("layers", 1)]), ("blocks", [("attention_blocks", 0), ("mlp_blocks", 1)])],
    ids=["layer", "blocks"],
)
def test_llama_without_them_runs_everywhere_alike(
    depth: str, gone: list[tuple[str, int]], head_dim: int, tmp_path: Path
) -> None:
    model, graph, kept = shrunk(build_model("llama", num_hidden_layers=3, head_dim=head_dim), depth, *gone)
    package = export_onnx(model, build_tokenizer(), tmp_path, QUICK)
    assert (package.route, package.no_genai) == ("builder", None)
    assert next(each for each in package.parity if each.name == "genai greedy tokens").value == 0
    decoder = json.loads((tmp_path / "genai_config.json").read_text())["model"]["decoder"]
    assert (decoder["num_hidden_layers"], decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (2, 8, 4)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    pasts = {each.name for each in session.get_inputs()} - {"input_ids", "attention_mask", "position_ids"}
    assert pasts == {f"past_key_values.{i}.{part}" for i in (0, 1) for part in ("key", "value")}
    cost = graph.cost(kept)
    assert (package.parameters, package.kv_bytes_per_token) == (cost.parameters, cost.kv_cache_bytes)
    ids, mask = torch.arange(2, 14).view(2, 6), torch.ones(2, 6, dtype=torch.int64)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    assert difference(run_onnx(tmp_path, ids, mask)["logits"], expected.numpy()) < 1e-5


@pytest.mark.matrix
def test_phi_without_blocks_is_traced_by_torch(tmp_path: Path) -> None:
    gone = [("attention_blocks", 0), ("mlp_blocks", 1)]
    model, graph, kept = shrunk(zoo.build("phi", num_hidden_layers=2), "blocks", *gone)
    package = export_onnx(model, build_tokenizer(), tmp_path, QUICK)
    assert (package.route, package.no_genai) == ("torch", None)
    assert package.plain_attention == "the graph is traced by torch.onnx"
    assert package.kv_bytes_per_token == graph.cost(kept).kv_cache_bytes
    assert json.loads((tmp_path / "genai_config.json").read_text())["model"]["decoder"]["num_hidden_layers"] == 1
