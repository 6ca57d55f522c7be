"""The general route to ONNX: ``torch.onnx.export`` of any module, and mends for what it or onnxruntime lacks."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from exporters.onnx import vendor
from exporters.onnx.expert_loops import put_loops
from exporters.onnx.experts import Mixtures, traceable_experts
from exporters.onnx.torch_caches import RUN_ERRORS
from passes.errors import UnsupportedModelError
from passes.models import reason

WIDENED = ("Add", "Div", "Mul", "Pow", "Sub")
"""Arithmetic that onnxruntime cannot do in bfloat16 on CPU."""


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """What to trace with: sample tensors, their names, their dynamic dimensions, and the names of the outputs.

    Sizes of dynamic dimensions must be at least 2 and all different: torch.export specialises on 0, on 1, and on sizes
    that happen to be equal. Masks must hold a zero: an all-ones mask would be optimised away.
    """

    sample: tuple[torch.Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: tuple[object, ...]


def trace_to_onnx(model: PreTrainedModel, wrapper: nn.Module, tracing: Tracing, path: Path, *, opset: int) -> int:
    """Write ``path`` and its data file beside it; return the number of weights in the graph.

    ``wrapper`` calls ``model`` with flat tensors and returns flat tensors. Raises ``UnsupportedModelError`` if torch
    cannot trace it.
    """
    try:
        with _ready_to_trace(model) as mixtures:
            program = torch.onnx.export(
                wrapper.eval(),
                tracing.sample,
                dynamo=True,
                opset_version=opset,
                input_names=list(tracing.inputs),
                output_names=list(tracing.outputs),
                dynamic_shapes=tracing.dynamic,
                verbose=False,
            )
            if program is not None:
                put_loops(program.model, mixtures, opset)
    except (torch.onnx.errors.OnnxExporterError, *RUN_ERRORS) as error:
        message = f"torch.onnx.export cannot trace {type(model).__name__} ({model.config.model_type}): {_root(error)}"
        raise UnsupportedModelError(message) from error
    if program is None:
        raise UnsupportedModelError(f"torch.onnx.export returned nothing for {type(model).__name__}")
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the paths of this machine
    _widen_bfloat16(program.model.graph)
    program.save(str(path), external_data=True)
    floats = {ir.DataType.FLOAT, from_torch_dtype(next(model.parameters()).dtype)}
    weights = program.model.graph.initializers.values()
    return sum(math.prod(int(size) for size in each.shape or ()) for each in weights if each.dtype in floats)


@contextmanager
def _ready_to_trace(model: PreTrainedModel) -> Iterator[Mixtures]:
    loggers = (logging.getLogger("torch.onnx"), logging.getLogger(vendor.REGISTRATION))
    levels = [each.level for each in loggers]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(vendor.no_fake_tensor_cache())
        mixtures = stack.enter_context(traceable_experts(model))
        stack.enter_context(vendor.Instead(functional.scaled_dot_product_attention, _grouped_attention))
        stack.enter_context(vendor.exporter_warnings_off())
        for each in loggers:
            each.setLevel(logging.ERROR)
        try:
            yield mixtures
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


def _grouped_attention(
    attend: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Attention that broadcasts its only KV head (Falcon) says so; torch's exporter has to know."""
    if query.ndim == 4 and key.shape[1] == 1 and query.shape[1] != 1:
        kwargs["enable_gqa"] = True
    result: torch.Tensor = attend(query, key, value, *args, **kwargs)
    return result


def _widen_bfloat16(graph: ir.Graph) -> None:
    """Compute bfloat16 arithmetic (Falcon's ALiBi) in float32, rounded after each step: the same numbers."""
    for node in list(graph.all_nodes()):
        output = node.outputs[0]
        if node.op_type not in WIDENED or output.dtype != ir.DataType.BFLOAT16:
            continue
        for index, value in enumerate(node.inputs):
            wide = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
            wide.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            graph.insert_before(node, wide)
            node.replace_input_with(index, wide.outputs[0])
        users = list(output.uses())
        output.type = ir.TensorType(ir.DataType.FLOAT)
        narrow = ir.node("Cast", [output], {"to": ir.DataType.BFLOAT16.value})
        narrow.outputs[0].type, narrow.outputs[0].shape = ir.TensorType(ir.DataType.BFLOAT16), output.shape
        graph.insert_after(node, narrow)
        for user, index in users:
            user.replace_input_with(index, narrow.outputs[0])


def _root(error: BaseException) -> str:
    """What the error at the bottom says; the exporter's own message is a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {reason(error)}"
