"""Is a quantised graph what it should be? Block by block against the old weights, node by node against its numbers.

The distance of the whole graph from torch's fp32 says how much the bits cost, and would hide a wrong channel. So every
stored block is compared with the block that it stands for, and every node is run on its own, on random inputs, against
a product with the numbers that were stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from exporters.onnx.blockwise import CHUNK, in_blocks, unpack
from exporters.onnx.calibrated import lengths_on
from exporters.onnx.rewrite import CONTRIB, IR_VERSION, tensor_of
from passes.errors import PostconditionError
from passes.models import Parity, relative_difference

FARTHEST = {4: 0.5, 8: 0.03}
"""How far a block may be from what it was, relative to its length. The worst that the nearest code can do to a block of
32, one large number and all others between two codes, is sqrt(31) / 2 ** bits: 0.35 and 0.022. One of another channel
is at 1.4."""

FARTHEST_ROW = 0.8
"""How far a calibrated row may be from what it was, relative to its length: its products with the text, or else its
numbers, since calibration moves weights at which the text hardly looks, and products that nearly cancel out are small.
Another channel is at 1.4 in both."""

FARTHER_THAN_NEAREST = 1.05
"""How far the products of a calibrated row with its text may be from what they were, relative to how far the nearest
codes would leave them."""

KERNEL = 4e-2
"""How far onnxruntime, which rounds inputs to int8 block by block, may be from the exact product."""

ROWS = 4

ZEROS = 3
"""The place of the zero points among the inputs of MatMulNBits."""


def compare(old: ir.Model, new: Path, bits: int, grams: Mapping[str, torch.Tensor] | None = None) -> tuple[Parity, ...]:
    """Compare all quantised nodes of ``new`` with those of the same outputs in ``old``. Raises PostconditionError.

    ``grams``: X^T X of the inputs of those that were calibrated, by their output.
    """
    before = {str(value.name): node for node in old.graph for value in node.outputs}
    grams = grams or {}
    far, kernel, row, nearest = {4: 0.0, 8: 0.0}, 0.0, 0.0, 0.0
    for node in ir.load(new).graph:
        if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
            continue
        matrix = _old_matrix(before[_output_of(node)])
        stored, width = _Stored.of(node, matrix.shape[1]), node.attributes.get_int("bits")
        if not stored.scales.isfinite().all():
            raise PostconditionError(f"export: {_output_of(node)} of {new.name} in int{bits} is not finite")
        gram = grams.get(_output_of(node))
        if gram is None:
            blocks = (_farthest_block(matrix[part], stored.numbers(part), stored.block) for part in stored.parts())
            far[width] = max(far[width], *blocks)
        else:
            numbers = stored.numbers(slice(None))
            row = max(row, _farthest_row(matrix, numbers, gram))
            nearest = max(nearest, _against_nearest(node, matrix, numbers, gram))
            del numbers
        del matrix  # a head's is large, and onnxruntime is about to copy its codes
        alone = _kernel(node, stored)
        kernel = max(kernel, alone if alone == alone else math.inf)  # max() passes NaN over
    found = [
        Parity(f"onnx int{width} weights, block by block", far[width], FARTHEST[width])
        for width in (8, 4)
        if far[width]
    ]
    if row:
        found.append(Parity("onnx int4 weights, row by row on the text", row, FARTHEST_ROW))
        found.append(Parity("onnx int4 products on the text, of the nearest codes'", nearest, FARTHER_THAN_NEAREST))
    found.append(Parity("onnx quantised nodes, one by one", kernel, KERNEL))
    for parity in found:
        if not parity.holds:
            raise PostconditionError(f"export: {parity}: {new.name} in int{bits}")
    return tuple(found)


def _output_of(node: ir.Node) -> str:
    """The output that the node, or the ``Slice`` behind it, has the name of."""
    users = [user for user, _ in node.outputs[0].uses()]
    if node.op_type == "GatherBlockQuantized" and [user.op_type for user in users] == ["Slice"]:
        return str(users[0].outputs[0].name)
    return str(node.outputs[0].name)


def _old_matrix(node: ir.Node) -> torch.Tensor:
    """What the old node multiplied with or looked up in, (outputs, inputs) or (tokens, hidden)."""
    if node.op_type == "Gather":
        return tensor_of(node.inputs[0])
    weight = node.inputs[1]
    assert weight is not None
    before = weight.producer()
    return tensor_of(weight).T if before is None else tensor_of(before.inputs[0])


def _source(value: ir.Value) -> ir.Value:
    """The initializer behind a value, which may have been reshaped."""
    before = value.producer()
    if before is None:
        return value
    assert before.inputs[0] is not None
    return before.inputs[0]


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What a node has in its file: ``codes`` (rows, bytes), ``scales`` (rows, blocks), packed ``zeros`` or None."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bits: int
    block: int
    columns: int

    @classmethod
    def of(cls, node: ir.Node, columns: int) -> _Stored:
        """Those of a node whose matrix has so many columns."""
        bits, block = (node.attributes.get_int(name) for name in ("bits", "block_size"))
        places = (1, 2, 3) if node.op_type == "MatMulNBits" else (0, 2, 3)
        codes, scales, *zeros = (tensor_of(_source(node.inputs[at])) for at in places if at < len(node.inputs))
        return cls(
            codes=codes.reshape(len(scales), -1),
            scales=scales,
            zeros=zeros[0] if zeros else None,
            bits=bits,
            block=block,
            columns=columns,
        )

    def parts(self) -> Iterator[slice]:
        """Rows that are looked at at once."""
        step = max(1, CHUNK // self.columns)
        return (slice(at, at + step) for at in range(0, len(self.scales), step))

    def numbers(self, rows: slice) -> torch.Tensor:
        """What the codes of these rows stand for, as the operators define them: fp32 (rows, columns)."""
        scales = self.scales[rows]
        codes = unpack(self.codes[rows].numpy(), self.bits).reshape(*scales.shape, self.block)
        middle: torch.Tensor | int = 2 ** (self.bits - 1)
        if self.zeros is not None:
            middle = unpack(self.zeros[rows].numpy(), self.bits)[:, : scales.shape[1], None].float()
        return ((codes.float() - middle) * scales[..., None]).flatten(1)[:, : self.columns]


def _farthest_row(old: torch.Tensor, stored: torch.Tensor, gram: torch.Tensor) -> float:
    """In its products with the inputs that ``gram`` (inputs, inputs) is of, or in its numbers, whichever is nearer."""
    products = _relative(lengths_on(old - stored, gram), lengths_on(old, gram))
    return float(torch.minimum(products, _relative((old - stored).norm(dim=1), old.norm(dim=1))).max())


def _against_nearest(node: ir.Node, old: torch.Tensor, stored: torch.Tensor, gram: torch.Tensor) -> float:
    """The products of the farthest row, relative to what the nearest codes would do to them."""
    bits, block = (node.attributes.get_int(name) for name in ("bits", "block_size"))
    nearest = in_blocks(old, bits, block, symmetric=len(node.inputs) <= ZEROS, search=False).values
    return float(_relative(lengths_on(old - stored, gram), lengths_on(old - nearest, gram)).max())


def _relative(differences: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return torch.where(differences != 0, differences / lengths.clamp_min(1e-30), 0)


def _farthest_block(old: torch.Tensor, stored: torch.Tensor, block: int) -> float:
    spare = -old.shape[1] % block
    wide = (torch.nn.functional.pad(each.float(), (0, spare)) for each in (old, old - stored))
    lengths, differences = (each.reshape(len(each), -1, block).norm(dim=-1) for each in wide)
    return float(_relative(differences, lengths).max())


def _kernel(node: ir.Node, stored: _Stored) -> float:
    """How far the node alone, in onnxruntime, is from the numbers that are stored."""
    generator = torch.Generator().manual_seed(0)
    if node.op_type == "MatMulNBits":
        fed = torch.randn(ROWS, stored.columns, generator=generator)
        expected = torch.cat([fed @ stored.numbers(part).T for part in stored.parts()], dim=1)
    else:
        fed = torch.randint(0, len(stored.scales), (ROWS,), generator=generator)
        expected = torch.cat([stored.numbers(slice(row, row + 1)) for row in fed.tolist()])
    found = _run(node, fed.numpy())[:, : expected.shape[1]]
    return relative_difference(torch.from_numpy(found), expected)


def _run(node: ir.Node, fed: np.ndarray) -> np.ndarray:
    place = 0 if node.op_type == "MatMulNBits" else 1
    given = ir.Value(name="given", type=ir.TensorType(ir.DataType.from_numpy(fed.dtype)), shape=ir.Shape(fed.shape))
    stored = list(_constants(node))
    inputs = [*stored[:place], given, *stored[place:]]
    alone = ir.node(node.op_type, inputs, dict(node.attributes), domain=CONTRIB)
    alone.outputs[0].name, alone.outputs[0].type = "found", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [given], alone.outputs, nodes=[alone], initializers=stored, opset_imports={"": 23, CONTRIB: 1}, name="alone"
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"given": fed})[0]
    return found


def _constants(node: ir.Node) -> Iterator[ir.Value]:
    """The node's stored inputs, each in a value of its own, in the shape that the node sees."""
    for value in node.inputs:
        if value is None or _source(value).const_value is None:
            continue
        tensor = tensor_of(_source(value))
        if value.producer() is not None:
            tensor = tensor.flatten(1)
        array = ir.tensor(tensor.numpy(), name=value.name)
        yield ir.Value(name=value.name, type=ir.TensorType(array.dtype), shape=ir.Shape(array.shape), const_value=array)
