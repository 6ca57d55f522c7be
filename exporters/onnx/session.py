"""An onnxruntime session called with torch tensors, and the checks that hold for every graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from exporters.calls import element_type
from exporters.options import GROUP_QUERY, PLAIN
from passes.errors import PostconditionError, UnsupportedModelError

ATTENTION_ENTRY = "lpc.attention"
"""The entry of a graph's metadata that says how attention is said in it, if not by opset 23's operator."""


def torch_type(named: str) -> torch.dtype:
    """The type that onnxruntime calls ``tensor(float16)`` and the like."""
    dtype: torch.dtype = to_torch_dtype(element_type(named))
    return dtype


class OnnxModel:
    """An onnxruntime session on CPU. Half-precision graphs take and give float32 tensors here.

    ``compact``: whether its cache holds the real tokens of each row first, and nothing for padding
    (``exporters.onnx.group_query``); else a token's place in it is its place in the mask.
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would starve torch's
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
            raise UnsupportedModelError(f"onnxruntime has no CPU kernel for a node of {path.name}: {error}") from error
        self.path = path
        self.inputs: list[Any] = self.session.get_inputs()
        self.outputs: list[Any] = self.session.get_outputs()
        self.shapes: dict[str, list[int | str]] = {each.name: each.shape for each in (*self.inputs, *self.outputs)}
        self.compact = self.session.get_modelmeta().custom_metadata_map.get(ATTENTION_ENTRY) == GROUP_QUERY
        self._types = {each.name: torch_type(each.type) for each in self.inputs}

    def __call__(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All outputs by name."""
        arrays = {name: self._array(name, value) for name, value in feeds.items()}
        outputs = self.session.run(None, arrays)
        tensors = (torch.from_numpy(np.asarray(each)).float() for each in outputs)
        return dict(zip((each.name for each in self.outputs), tensors, strict=True))

    def empty(self, names: Sequence[str], batch: int) -> dict[str, torch.Tensor]:
        """Caches of length zero: (batch, KV heads, 0, head_dim) each."""
        return {name: torch.zeros(batch, int(self.shapes[name][1]), 0, int(self.shapes[name][3])) for name in names}

    def bytes_per_token(self, names: Sequence[str]) -> int:
        """Bytes that one token of one sequence takes in the caches of these names."""
        sizes = {name: self._types[name].itemsize for name in names}
        return sum(int(self.shapes[name][1]) * int(self.shapes[name][3]) * size for name, size in sizes.items())

    def _array(self, name: str, tensor: torch.Tensor) -> Any:
        return (tensor.to(self._types[name]) if tensor.is_floating_point() else tensor).numpy()


def attention_of(path: Path) -> str:
    """How a decoder's graph says attention, which its metadata name where it is not opset 23's."""
    import onnx

    entries = onnx.load_model(str(path), load_external_data=False).metadata_props
    return next((each.value for each in entries if each.key == ATTENTION_ENTRY), PLAIN)


def open_checked(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> OnnxModel:
    """Load a graph that ``check_graph`` lets pass. Raises ``PostconditionError``."""
    check_graph(path, inputs, outputs)
    return OnnxModel(path)


def check_graph(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise ``PostconditionError`` unless a graph is valid ONNX, its inputs and outputs exactly the promised ones, and
    its cache static in KV heads. Reads no weights.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PostconditionError(f"export: onnx.checker refuses {path.name}: {error}") from error
    graph = onnx.load_model(str(path), load_external_data=False).graph
    for what, values, expected in (("inputs", graph.input, inputs), ("outputs", graph.output, outputs)):
        actual = [each.name for each in values]
        if actual != list(expected):
            raise PostconditionError(f"export: the {what} of {path.name} are {actual}, expected {list(expected)}")
    for each in graph.input:
        sizes = each.type.tensor_type.shape.dim
        if "past_key_values" in each.name and not all(sizes[axis].HasField("dim_value") for axis in (1, 3)):
            shape = [size.dim_param or size.dim_value for size in sizes]
            raise PostconditionError(f"export: KV heads and head size of {each.name} are not static: {shape}")
