from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from conftest import build_model, build_tokenizer
from onnx_workbench import difference, run_onnx

from exporters.onnx import dynamic, export_onnx
from exporters.options import OnnxOptions
from passes.errors import PostconditionError


def written(folder: Path, **changes: object) -> Path:
    options = OnnxOptions(precision=("int8-dynamic",), greedy_prompts=0)
    export_onnx(build_model("llama", **changes), build_tokenizer(), folder, options)
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_products_are_of_int8_and_stay_near(tied: bool, tmp_path: Path) -> None:
    model, ids = build_model("llama", tie_word_embeddings=tied), torch.arange(12).reshape(2, 6)
    folder = written(tmp_path, tie_word_embeddings=tied)
    graph = ir.load(folder / "model.onnx").graph
    kinds = [node.op_type for node in graph]
    assert "MatMul" not in kinds
    assert kinds.count("MatMulInteger") == 1 + 4 * len(model.model.layers)
    assert kinds.count("DynamicQuantizeLinear") == kinds.count("MatMulInteger")
    steps = graph.initializers["model.layers.0.mlp.down_proj.weight.int8.steps"].const_value.numpy()
    most = model.model.layers[0].mlp.down_proj.weight.detach().abs().amax(dim=1)
    assert torch.allclose(torch.tensor(steps), most / 127)
    with torch.no_grad():
        wanted = model(ids).logits.numpy()
    assert 1e-4 < difference(run_onnx(folder, ids, torch.ones_like(ids))["logits"], wanted) < 0.1


def test_an_input_that_several_products_read_is_rounded_once(tmp_path: Path) -> None:
    a, weights = ir.Value(name="a", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 4])), []
    for name in ("b", "c"):
        tensor = ir.tensor(torch.randn(4, 3).numpy(), name=name)
        weights.append(ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor))
    nodes = [ir.node("MatMul", [a, weight], name=f"of {weight.name}") for weight in weights]
    for node in nodes:
        node.outputs[0].name, node.outputs[0].type = f"{node.name} out", ir.TensorType(ir.DataType.FLOAT)
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([a], outputs, nodes=nodes, initializers=weights, opset_imports={"": 23}, name="two")
    ir.save(ir.Model(graph, ir_version=11), tmp_path / "two.onnx")
    dynamic.quantise_dynamic(tmp_path / "two.onnx", OnnxOptions())
    kinds = [node.op_type for node in ir.load(tmp_path / "two.onnx").graph]
    assert (kinds.count("DynamicQuantizeLinear"), kinds.count("MatMulInteger")) == (1, 2)


def test_a_weight_that_is_not_the_nearest_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = dynamic.steps_of
    monkeypatch.setattr(dynamic, "codes_of", lambda matrix: (matrix / right(matrix)[:, None]).floor().to(torch.int8))
    with pytest.raises(PostconditionError, match="in steps of their channel"):
        written(tmp_path)
