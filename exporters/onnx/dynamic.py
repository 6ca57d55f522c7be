"""Weights of int8 by output channel, and inputs rounded to int8 as they come: onnxruntime's MatMulInteger.

Where many rows are multiplied at once, as in encoders, its products of whole int8 matrices are faster than the blocks
of MatMulNBits. Inputs share one scale a call, so a few large activations cost all others; the weights are symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch

from exporters.onnx.quantised import Rewriting, WeightUse, readers, remove_unread
from exporters.onnx.quantised_proof import compare
from exporters.onnx.rewrite import CONTRIB, lazily, put_in_place, rewritten, tensor_of
from exporters.options import OnnxOptions
from passes.errors import PostconditionError
from passes.models import Parity

MOST = 127
"""The largest code of either sign."""

NEAREST = 0.51
"""How far a weight may be from its code, in steps of its channel: half of one, and what fp32 makes of that."""


def quantise_dynamic(path: Path, options: OnnxOptions) -> tuple[Parity, ...]:
    """Store the products of a graph so, and its embedding in blocks of int8. Proven: weights, channel by channel."""
    with rewritten(path, partial(_quantise, options=options)) as new:
        old = ir.load(path)
        proof = (_nearest(old, new), *compare(old, new, 8))
        put_in_place(new, path)
    return proof


def _quantise(model: ir.Model, options: OnnxOptions) -> None:
    products = _Products(Rewriting(graph=model.graph, options=options, grams={}))
    for reader in list(readers(model.graph)):
        if reader.kind == "embedding":
            products.rewriting.quantise(reader, 8)
        else:
            products.quantise(reader)
    remove_unread(model.graph)
    model.graph.opset_imports[CONTRIB] = 1


@dataclass
class _Products:
    """The products of one graph; an input or a matrix that several of them read is there once."""

    rewriting: Rewriting
    inputs: dict[str, list[ir.Value]] = field(default_factory=dict)
    weights: dict[str, list[ir.Value]] = field(default_factory=dict)

    def quantise(self, reader: WeightUse) -> None:
        """MatMulInteger and what gives its sums their scale, in the place of a MatMul."""
        before, (codes, scales, zeros) = self._given(reader), self._stored(reader)
        rounded, scale, zero = self.inputs[reader.input]
        product = ir.node("MatMulInteger", [rounded, codes, zero, zeros])
        wide = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT.value})
        step = ir.node("Mul", [scale, scales])
        scaled = ir.node("Mul", [wide.outputs[0], step.outputs[0]])
        self.rewriting.replace(reader.node, [*before, product, wide, step, scaled])

    def _given(self, reader: WeightUse) -> list[ir.Node]:
        """The node that rounds the reader's input, unless it is there."""
        if reader.input in self.inputs:
            return []
        node = ir.node("DynamicQuantizeLinear", [reader.node.inputs[0]], num_outputs=3)
        self.inputs[reader.input] = list(node.outputs)
        return [node]

    def _stored(self, reader: WeightUse) -> list[ir.Value]:
        name, (channels, width) = str(reader.weight.name), reader.shape
        if name not in self.weights:
            int8 = ir.DataType.INT8
            stored = [
                lazily(f"{name}.int8", lambda: codes_of(reader.matrix()).T, int8, (width, channels)),
                lazily(f"{name}.int8.steps", lambda: steps_of(reader.matrix()), ir.DataType.FLOAT, (channels,)),
                lazily(f"{name}.int8.zeros", lambda: torch.zeros(channels, dtype=torch.int8), int8, (channels,)),
            ]
            for value in stored:
                self.rewriting.graph.register_initializer(value)
            self.weights[name] = stored
        return self.weights[name]


def steps_of(matrix: torch.Tensor) -> torch.Tensor:
    """The step of each channel (outputs,) of a matrix (outputs, inputs)."""
    most = matrix.abs().amax(dim=1)
    return torch.where(most == 0, torch.ones_like(most), most) / MOST


def codes_of(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest codes, int8 (outputs, inputs)."""
    return (matrix / steps_of(matrix)[:, None]).round().to(torch.int8)


def _nearest(old: ir.Model, new: Path) -> Parity:
    """Every weight is the nearest multiple of its channel's step."""
    stored, worst = ir.load(new).graph.initializers, 0.0
    for reader in readers(old.graph):
        if reader.kind == "embedding":
            continue
        codes, steps = (tensor_of(stored[f"{reader.weight.name}.int8{part}"]) for part in ("", ".steps"))
        far = float((reader.matrix() / steps[:, None] - codes.T).abs().max())
        worst = max(worst, far if far == far else float("inf"))
    parity = Parity("onnx int8 weights, in steps of their channel", worst, NEAREST)
    if not parity.holds:
        raise PostconditionError(f"export: {parity}: {new.name}")
    return parity
