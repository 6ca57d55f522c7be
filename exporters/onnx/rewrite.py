"""Rewriting the file of a graph: tensors are read from the old file while the new one is written, one at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.tensor_adapters import TorchTensor

from exporters.calls import GROUP_QUERY_NODE

CONTRIB = "com.microsoft"
IR_VERSION = 11
EXTERNAL_FROM_BYTES = 1024
"""Smaller tensors are stored in the graph's own file."""


@contextmanager
def rewritten(path: Path, change: Callable[[ir.Model], None]) -> Iterator[Path]:
    """The changed graph, with its data file, in a folder beside ``path`` that is gone after the block."""
    model = ir.load(path)
    change(model)
    stage = path.parent / f".{path.name}.new"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        save(model, stage / path.name)
        yield stage / path.name
    finally:
        shutil.rmtree(stage)


def save(model: ir.Model, path: Path) -> None:
    """Write a model, with its data file beside it."""
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=EXTERNAL_FROM_BYTES)


def put_in_place(new: Path, path: Path) -> None:
    """Replace a graph and its data by the rewritten ones."""
    for name in (f"{path.name}.data", path.name):
        if (new.parent / name).exists():
            (new.parent / name).replace(path.parent / name)
        else:
            (path.parent / name).unlink(missing_ok=True)


def matrices(graph: ir.Graph, *, stacks: bool = False) -> Iterator[ir.Value]:
    """The initializers that are matrices of fp32, or ``stacks`` of such (experts), but for tables of angles; what is in
    fewer bits, such as ALiBi's slopes, the model rounds itself.
    """
    axes = (2, 3) if stacks else (2,)
    for value in graph.initializers.values():
        table = any(user.op_type == GROUP_QUERY_NODE for user, _ in value.uses())
        if value.dtype == ir.DataType.FLOAT and len(value.shape or ()) in axes and not table:
            yield value


def tensor_of(value: ir.Value | None) -> torch.Tensor:
    """The numbers of an initializer, see ``array_of``."""
    assert value is not None
    return torch.from_numpy(array_of(value))


def array_of(value: ir.Value) -> NDArray[Any]:
    """The numbers of an initializer; of one in a file, which may go, a copy, and its pages of the file go back."""
    tensor = value.const_value
    assert tensor is not None
    array: NDArray[Any] = tensor.numpy()
    if not array.flags.writeable:
        array = array.copy()
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return array


def lazily(name: str, make: Callable[[], torch.Tensor], dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
    """An initializer that is made while the file is written."""
    tensor = ir.LazyTensor(lambda: TorchTensor(make(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name)
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
