"""Weights stored in half precision and computed in fp32: half the file, and onnxruntime widens them as it loads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype

from exporters.onnx.rewrite import array_of, lazily, matrices, put_in_place, rewritten, save, tensor_of
from exporters.options import OnnxOptions
from passes.errors import PostconditionError
from passes.models import Parity


def store(path: Path, options: OnnxOptions, *, dtype: torch.dtype) -> tuple[Parity, ...]:
    """Store every matrix of the graph, or stack of such, in ``dtype``, with a ``Cast`` behind it. Proven: to rounding,
    bit for bit.
    """
    with rewritten(path, partial(_narrow, dtype=dtype)) as new:
        parity = _compare(ir.load(path), new, dtype)
        put_in_place(new, path)
    return (parity,)


def store_streamed(
    make: Callable[[], ir.Model], path: Path, options: OnnxOptions, *, dtype: torch.dtype
) -> tuple[Parity, ...]:
    """As ``store``, of a graph that is in no file: ``make`` gives it, and its weights are read while it is written."""
    model = make()
    _narrow(model, dtype)
    save(model, path)
    return (_compare(make(), path, dtype),)


def _narrow(model: ir.Model, dtype: torch.dtype) -> None:
    graph, kind = model.graph, from_torch_dtype(dtype)
    for value in list(matrices(graph, stacks=True)):
        narrow = lazily(f"{value.name}.stored", partial(_rounded, value, dtype), kind, value.shape.numpy())
        cast = ir.node("Cast", [narrow], {"to": value.dtype.value}, name=f"{value.name}.widened")
        wide = cast.outputs[0]
        wide.name, wide.type, wide.shape = f"{value.name}.wide", ir.TensorType(value.dtype), value.shape
        for user, index in list(value.uses()):
            user.replace_input_with(index, wide)
        graph.insert_before(graph[0], cast)
        del graph.initializers[value.name]
        graph.initializers[narrow.name] = narrow


def _rounded(value: ir.Value, dtype: torch.dtype) -> torch.Tensor:
    return tensor_of(value).to(dtype)


def _compare(old: ir.Model, new: Path, dtype: torch.dtype) -> Parity:
    """The stored numbers are the old ones, rounded."""
    stored = ir.load(new).graph.initializers
    for value in matrices(old.graph, stacks=True):
        found = torch.from_numpy(array_of(stored[f"{value.name}.stored"]).view("int16")).view(dtype)
        if not found.isfinite().all():
            raise PostconditionError(f"export: {value.name} is too large for {dtype}: take bf16 or fp32")
        if not torch.equal(found, _rounded(value, dtype)):
            raise PostconditionError(f"export: {value.name} in {new.name} is not what it was, rounded to {dtype}")
    return Parity(f"onnx weights rounded to {str(dtype).removeprefix('torch.')}", 0.0, 0.0)
