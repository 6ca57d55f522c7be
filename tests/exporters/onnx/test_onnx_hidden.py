"""Models with a smaller hidden size through ``export_onnx``, and the graphs called by plain onnxruntime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from conftest import build_tokenizer
from onnx_workbench import difference, run_onnx

from exporters.onnx import export_onnx
from exporters.options import OnnxOptions
from passes.options import TraceOptions
from passes.shrink import build_compact
from passes.trace import trace


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_the_graph_computes_what_the_narrow_model_does(name: str, tmp_path: Path) -> None:
    model = zoo.build(name, num_hidden_layers=1, rms_norm_eps=0.3)
    graph = trace(model.config, torch.float32, model_type=type(model), options=TraceOptions(hidden=True))
    kept = {d.name: tuple(range(0, d.size, 2)) for d in graph.dimensions}
    compact = build_compact(model, graph, kept)
    export_onnx(compact, build_tokenizer(), tmp_path, OnnxOptions(greedy_prompts=1, greedy_tokens=4))
    batch = zoo.inputs(model, zoo.ZOO[name])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        expected = compact(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    assert compact.config.hidden_size == 16
    assert difference(run_onnx(tmp_path, ids, mask)["logits"], expected.numpy(), mask) < 1e-5
