"""What the graph says a plan costs is what the exported file holds."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
import torch
import zoo
from transformers import PreTrainedTokenizerBase
from uneven import uneven_units

from exporters.onnx import export_onnx
from passes.budget import Solver, best_units
from passes.options import Target, TraceOptions
from passes.shrink import build_compact
from passes.trace import trace


@pytest.mark.parametrize(("name", "layout"), [("llama", "per-layer"), ("qwen3", "uniform")])
def test_the_file_holds_the_parameters_and_the_cache_that_the_graph_counts(
    name: str, layout: str, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = zoo.build(name)
    graph = trace(model.config, model_type=type(model), options=TraceOptions(custom_code=layout == "per-layer"))
    if layout == "per-layer":
        kept = uneven_units(graph)
    else:
        scores = {d.name: torch.rand(d.size, generator=torch.Generator().manual_seed(0)) for d in graph.dimensions}
        masks = best_units(graph, scores, Solver.of(Target(ratio=0.3), graph).kept(scores))
        kept = {each: tuple(mask.nonzero().flatten().tolist()) for each, mask in masks.items()}
    cost = graph.cost(kept)
    export_onnx(build_compact(model, graph, kept), tiny_tokenizer, tmp_path)
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    weights = [each for each in proto.initializer if each.name.endswith((".weight", ".bias"))]
    assert sum(math.prod(each.dims) for each in weights) == cost.parameters
    assert sum(math.prod(each.dims) * 4 for each in weights) == cost.weight_bytes
    past = [each.type.tensor_type.shape.dim for each in proto.input if each.name.startswith("past_key_values")]
    assert sum(shape[1].dim_value * shape[3].dim_value * 4 for shape in past) == cost.kv_cache_bytes
