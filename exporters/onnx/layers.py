"""What every block of a decoder's graph is made of: linear layers and norms, written from torch modules."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from exporters.onnx.graph import GraphBuilder


def linear(graph: GraphBuilder, name: str, hidden: ir.Value, *linears: nn.Linear) -> ir.Value:
    """Linear layers with the same input, their outputs side by side: one multiplication."""
    weight = graph.weight(f"{name}.weight", [each.weight for each in linears], transpose=True)
    product = graph.op("MatMul", hidden, weight)
    if all(each.bias is None for each in linears):
        return product
    biases = [torch.zeros(each.out_features) if each.bias is None else each.bias for each in linears]
    return graph.op("Add", product, graph.weight(f"{name}.bias", biases))


def norm(graph: GraphBuilder, module: Any, name: str, hidden: ir.Value) -> ir.Value:
    """An RMS norm over the last axis."""
    weight = graph.weight(f"{name}.weight", [module.weight])
    return graph.op("RMSNormalization", hidden, weight, axis=-1, epsilon=float(module.variance_epsilon))


def is_absent(block: nn.Module | None) -> bool:
    """Whether a block is gone: None, or all of its parameters have no elements (``passes.models.resized.Absent``)."""
    if block is None:
        return True
    sizes = [parameter.numel() for parameter in block.parameters()]
    return bool(sizes) and not any(sizes)
