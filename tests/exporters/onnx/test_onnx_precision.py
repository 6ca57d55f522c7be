from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import zoo
from conftest import build_model, build_tokenizer
from plugins import installed

from exporters.onnx import FLOAT32, PRECISIONS, export_onnx, register_precision
from exporters.onnx.rewrite import matrices
from exporters.options import OnnxOptions
from passes.errors import OptionError, PostconditionError
from passes.models import Parity, rounding_tolerance


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with PRECISIONS.restored():
        yield


def rounded(path: Path, options: OnnxOptions) -> tuple[Parity, ...]:
    """Stores the nearest half-precision number of every weight, still in float32."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT and len(value.shape) > 1:
            numbers = value.const_value.numpy().astype(np.float16).astype(np.float32)
            value.const_value = ir.tensor(numbers, name=value.name)
    ir.save(model, path, external_data=f"{path.name}.data")
    return ()


ROUNDED = replace(FLOAT32, name="rounded", tolerance=1e-2, tie=1e-2, writer=rounded)


ONE_LAYER = {
    "llama": {"num_hidden_layers": 1},
    "gpt2": {"n_layer": 1},
    "bert": {"num_hidden_layers": 1},
    "t5": {"num_layers": 1},
}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", pytest.param("t5", marks=pytest.mark.matrix)])
def test_a_precision_of_the_user_s_own_is_written_by_its_writer_and_verified(name: str, tmp_path: Path) -> None:
    register_precision(ROUNDED)
    options = OnnxOptions(precision=("rounded",), greedy_prompts=1, greedy_tokens=2)
    model = zoo.build(name, **ONE_LAYER[name])
    package = export_onnx(model, build_tokenizer() if name in ("llama", "gpt2") else None, tmp_path, options)
    assert package.precision == "rounded"
    assert 1e-6 < max(parity.value for parity in package.parity) < 1e-2
    graph = ir.load(next(path for path in tmp_path.glob("*.onnx"))).graph
    weights = [each.const_value.numpy() for each in graph.initializers.values() if len(each.shape) > 1]
    assert weights
    assert all(np.array_equal(each, each.astype(np.float16)) for each in weights)


def test_its_tolerance_is_what_the_graph_is_held_to(tmp_path: Path) -> None:
    register_precision(replace(ROUNDED, tolerance=1e-6))
    with pytest.raises(PostconditionError, match="1e-06"):
        export_onnx(
            build_model("llama"), build_tokenizer(), tmp_path, OnnxOptions(precision=("rounded",), greedy_prompts=0)
        )


def test_an_unknown_precision_is_refused_with_the_names() -> None:
    with pytest.raises(OptionError, match="unknown precision 'int3': choose one of auto, fp32, fp16, bf16"):
        OnnxOptions(precision=("int3",))


def test_the_rows_are_what_they_were() -> None:
    rows = {name: (row.torch_dtype, row.tolerance, row.masked) for name, row in PRECISIONS.items()}
    assert rows["fp32"] == (torch.float32, 1e-4, -1e30)
    assert rows["fp16"] == (torch.float16, 1e-2, -3e4)
    assert [PRECISIONS[name].tie for name in ("fp32", "fp16")] == [
        rounding_tolerance(torch.float32),
        rounding_tolerance(torch.float16),
    ]


def test_a_package_brings_a_precision(tmp_path: Path) -> None:
    code = "from dataclasses import replace\nfrom exporters.onnx import FLOAT32\nROW = replace(FLOAT32, name='loose')\n"
    with installed(tmp_path, "loose_package", "lpc.precisions", {"loose": "loose_package:ROW"}, code) as run:
        said = (
            "import lpc; from exporters.onnx.options import precision_of; "
            "print(precision_of(lpc.OnnxOptions(precision=('loose',))).tolerance)"
        )
        assert run(said) == "0.0001"


def test_only_what_is_in_fp32_is_stored_in_fewer_bits() -> None:
    kinds = (ir.DataType.FLOAT, ir.DataType.BFLOAT16)
    values = [ir.Value(name=str(kind), type=ir.TensorType(kind), shape=ir.Shape((2, 2))) for kind in kinds]
    for value, kind in zip(values, kinds, strict=True):
        value.const_value = ir.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=kind, name=value.name)
    stack = ir.Value(name="experts", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((2, 2, 2)))
    stack.const_value = ir.tensor([[[1.0, 2.0], [3.0, 4.0]]] * 2, name=stack.name)
    graph = ir.Graph([], [], nodes=[], initializers=[*values, stack])
    assert list(matrices(graph)) == values[:1]
    assert list(matrices(graph, stacks=True)) == [values[0], stack]
