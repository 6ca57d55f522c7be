"""``config.pbtxt``: what Triton must know of a model, read off its graph.

Format: Triton's ``ModelConfig`` (triton-inference-server/common protobuf/model_config.proto; conventions.md 2.5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from exporters.onnx import BATCH
from passes.errors import UnsupportedModelError

MOST_IN_A_BATCH = 32
"""Rows that Triton may put together."""

TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT64: "TYPE_INT64",
}

OF_ROWS = "Requests of the same lengths are put together to batches of at most this many rows."
OF_A_DECODER = (
    "The backend keeps nothing between requests: what a request gets as present.* its client sends with the next\n"
    "# token as past_key_values.*, of length 0 with the first. Rows of a batch share one cache: nothing is batched."
)


@dataclass(frozen=True)
class Tensor:
    """An input or output: its name, Triton's name of its type, and its dimensions, -1 for what a request says."""

    name: str
    type: str
    dims: tuple[int, ...]

    def text(self, *, batched: bool) -> str:
        """As Triton reads it; of a batch without the first dimension."""
        dims = ", ".join(str(size) for size in self.dims[1 if batched else 0 :])
        return f'  {{ name: "{self.name}" data_type: {self.type} dims: [ {dims} ] }}'


def config_text(name: str, graph: Path) -> str:
    """The configuration of the model ``name`` whose graph is in a folder of a version.

    Triton puts requests together where all inputs and outputs begin with the batch and there is no cache. Raises
    UnsupportedModelError for a type that Triton has no name for.
    """
    found = onnx.load_model(str(graph), load_external_data=False).graph
    cached = any(each.name.startswith("past_key_values.") for each in found.input)
    rows = all(_first(each) == BATCH for each in (*found.input, *found.output))
    batched = rows and not cached
    why = OF_A_DECODER if cached else OF_ROWS
    head = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f'default_model_filename: "{graph.name}"',
        f"# {why}",
        f"max_batch_size: {MOST_IN_A_BATCH if batched else 0}",
    ]
    tensors = [
        _listed(part, found_in, batched) for part, found_in in (("input", found.input), ("output", found.output))
    ]
    return "\n".join([*head, *tensors, *(["dynamic_batching { }"] if batched else [])]) + "\n"


def _listed(part: str, values: Iterable[onnx.ValueInfoProto], batched: bool) -> str:
    texts = ",\n".join(_tensor(each).text(batched=batched) for each in values)
    return f"{part} [\n{texts}\n]"


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    if kind.elem_type not in TYPES:
        named = onnx.TensorProto.DataType.Name(kind.elem_type)
        raise UnsupportedModelError(f"{value.name} is of {named}, for which lpc knows no name of Triton's")
    return Tensor(value.name, TYPES[kind.elem_type], tuple(_size(each) for each in kind.shape.dim))


def _size(dimension: onnx.TensorShapeProto.Dimension) -> int:
    return int(dimension.dim_value) if dimension.HasField("dim_value") else -1


def _first(value: onnx.ValueInfoProto) -> str:
    return str(value.type.tensor_type.shape.dim[0].dim_param)
