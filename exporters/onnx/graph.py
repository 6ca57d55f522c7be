"""A thin builder over onnx-ir: nodes in order, weights written once and lazily."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.tensor_adapters import TorchTensor

from exporters.onnx.precision import FLOAT32, Precision
from exporters.onnx.rewrite import EXTERNAL_FROM_BYTES, IR_VERSION

Read = Callable[[torch.Tensor], torch.Tensor]


class GraphBuilder:
    """Collects the nodes and initializers of one graph.

    Every weight is converted to the float type of ``precision``. Weights are read from their torch tensors only
    while the file is written, one at a time, so that building a graph needs no second copy of the model; ``read`` gives
    the values of a tensor, which may be on the meta device until then.
    """

    def __init__(self, precision: Precision = FLOAT32, read: Read = torch.Tensor.detach) -> None:
        self.read = read
        self.dtype, self.float_type, self.masked = precision.torch_dtype, precision.float_type, precision.masked
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """A graph input; string dimensions are dynamic."""
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(list(shape)))

    def op(
        self, kind: str, *inputs: ir.Value | None, domain: str = "", name: str = "", **attributes: object
    ) -> ir.Value:
        """Append a node with one output and return the output (called ``name`` if given)."""
        return self.ops(kind, 1, *inputs, domain=domain, names=(name,), **attributes)[0]

    def ops(
        self,
        kind: str,
        outputs: int,
        *inputs: ir.Value | None,
        domain: str = "",
        names: Sequence[str] = (),
        **attributes: object,
    ) -> list[ir.Value]:
        """Append a node with several outputs; an empty name is replaced by a unique one."""
        node_name = f"{kind}_{len(self.nodes)}"
        wanted = [names[i] if i < len(names) and names[i] else f"{node_name}_{i}" for i in range(outputs)]
        values = [ir.Value(name=each) for each in wanted]
        self.nodes.append(ir.node(kind, inputs, attributes, domain=domain, outputs=values, name=node_name))
        return values

    def weight(self, name: str, parts: Sequence[torch.Tensor], *, transpose: bool = False) -> ir.Value:
        """An initializer: ``parts`` stacked along dimension 0, then transposed if asked; a name is stored once."""
        if name not in self.initializers:
            rows = sum(part.shape[0] for part in parts)
            shape = [rows, *parts[0].shape[1:]]
            tensor = ir.LazyTensor(
                lambda: TorchTensor(self._values(parts, transpose), name=name),
                dtype=self.float_type,
                shape=ir.Shape(shape[::-1] if transpose else shape),
                name=name,
            )
            self._store(name, tensor)
        return self.initializers[name]

    def constant(self, name: str, value: NDArray[np.generic]) -> ir.Value:
        """A small constant, stored once under its name."""
        if name not in self.initializers:
            self._store(name, ir.tensor(value, name=name))
        return self.initializers[name]

    def ints(self, *values: int) -> ir.Value:
        """A 1-D int64 constant."""
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: int) -> ir.Value:
        """A 0-D int64 constant."""
        return self.constant(f"int_{value}", np.array(value, np.int64))

    def floats(self, name: str, value: float) -> ir.Value:
        """A 0-D constant in the graph's float type."""
        return self.constant(name, np.array(value, self.float_type.numpy()))

    def output(self, value: ir.Value, shape: Sequence[int | str]) -> ir.Value:
        """Give a value the type and shape of a float output."""
        value.type, value.shape = ir.TensorType(self.float_type), ir.Shape(list(shape))
        return value

    def save(
        self,
        path: Path,
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        *,
        opset: int,
        data_file: str,
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """Write the model with its large weights in ``data_file`` beside it; return the number of weights stored."""
        model = self.model(inputs, outputs, opset=opset, metadata=metadata)
        ir.save(model, path, external_data=data_file, size_threshold_bytes=EXTERNAL_FROM_BYTES)
        return self.weights

    @property
    def weights(self) -> int:
        """The number of weights stored."""
        named = (value for name, value in self.initializers.items() if "." in name)
        return sum(math.prod(int(size) for size in value.shape or ()) for value in named)

    def model(
        self,
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        *,
        opset: int,
        metadata: Mapping[str, str] | None = None,
    ) -> ir.Model:
        """What was collected, once: its nodes are in this graph from then on. No weight is read."""
        domains = {node.domain for node in self.nodes} - {""}
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": opset, **dict.fromkeys(domains, 1)},
            name="decoder",
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="lpc", metadata_props=dict(metadata or {}))

    def _values(self, parts: Sequence[torch.Tensor], transpose: bool) -> torch.Tensor:
        """The parts in the graph's type, stacked; transposed they are a view, which is copied only to be written."""
        read = [self.read(part).to("cpu", self.dtype) for part in parts]
        tensor = torch.cat(read) if len(read) > 1 else read[0]
        return tensor.T if transpose else tensor

    def _store(self, name: str, tensor: ir.TensorProtocol) -> None:
        self.initializers[name] = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(list(tensor.shape)), const_value=tensor
        )
