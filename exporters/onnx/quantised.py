"""Weights in 4 or 8 bits: onnxruntime's MatMulNBits and GatherBlockQuantized in the places of MatMul and Gather."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import onnx_ir as ir
import psutil
import torch

from exporters.onnx.blockwise import Blocks, in_blocks
from exporters.onnx.calibrated import grams, solved
from exporters.onnx.quantised_proof import compare
from exporters.onnx.rewrite import CONTRIB, lazily, matrices, put_in_place, rewritten, save, tensor_of
from exporters.options import OnnxOptions
from passes.models import Parity

Kind = Literal["weight", "head", "embedding"]

logger = logging.getLogger(__name__)

FREE_FOR_GRAMS = 3
"""So many times what the products of a calibration text with themselves take must be free, if nobody asked for them."""

INT8_PRODUCTS = 4
"""The accuracy level of MatMulNBits whose products are of int8: the fast one on CPU."""

BEHIND_THE_HEAD = ("Add", "Mul", "Div", "Tanh", "Cast", "Identity")


def quantise(path: Path, options: OnnxOptions, *, bits: int) -> tuple[Parity, ...]:
    """Store the weights of a graph in ``bits``, the head and the embedding as the options say for 4 bits.

    Proven, of every one of them: each block is near what it was, and onnxruntime computes what its numbers give.
    """
    known: Mapping[str, torch.Tensor] = {}
    solved_for: dict[str, torch.Tensor] = {}
    calibrated = _calibrated(path, options) if bits == 4 else []
    text = options.calibration or options.rows
    if calibrated and text is not None:
        known = grams(path, [each.input for each in calibrated], text)
        solved_for = {str(each.node.outputs[0].name): known[each.input] for each in calibrated}
    with rewritten(path, partial(_quantise, options=options, bits=bits, known=known)) as new:
        proof = compare(ir.load(path), new, bits, solved_for)
        put_in_place(new, path)
    return proof


def _calibrated(path: Path, options: OnnxOptions) -> list[WeightUse]:
    """The products whose codes a text chooses: none without one, nor where nobody named it and memory is short."""
    if options.calibration is None and options.rows is None:
        return []
    found = [reader for reader in readers(ir.load(path).graph) if reader.kind == "weight"]
    needed = 4 * sum(width**2 for width in {each.input: each.shape[1] for each in found}.values())
    free = int(psutil.virtual_memory().available)
    if options.calibration is None and FREE_FOR_GRAMS * needed > free:
        logger.warning(
            "int4 has the nearest codes: to choose them on the data takes %.1f GB, of %.1f free; --calibration FILE "
            "does it all the same",
            needed / 1e9,
            free / 1e9,
        )
        return []
    return found


def quantise_streamed(
    make: Callable[[], ir.Model], path: Path, options: OnnxOptions, *, bits: int
) -> tuple[Parity, ...]:
    """As ``quantise`` without a text, of a graph that is in no file: ``make`` gives it, its weights read as they go."""
    model = make()
    _quantise(model, options, bits, {})
    save(model, path)
    del model  # with the last weights that it read
    return compare(make(), path, bits)


@dataclass(frozen=True, kw_only=True)
class WeightUse:
    """A node that reads a matrix of weights: ``node`` a MatMul or a Gather. ``rows_first``: as (outputs, inputs).

    ``input`` is the name of what it multiplies with them; kept, since the node loses it when it is replaced.
    """

    node: ir.Node
    weight: ir.Value
    rows_first: bool
    kind: Kind
    input: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs or tokens, inputs or hidden."""
        first, second = (int(size) for size in self.weight.shape or ())
        return (first, second) if self.rows_first else (second, first)

    def matrix(self) -> torch.Tensor:
        """The weights, fp32 (outputs or tokens, inputs or hidden)."""
        numbers = tensor_of(self.weight)
        return (numbers if self.rows_first else numbers.T).contiguous()


def readers(graph: ir.Graph) -> Iterator[WeightUse]:
    """All of them, in order."""
    found = {value.name for value in matrices(graph)}
    for node in graph:
        reader = _reader(node)
        if reader is not None and reader.weight.name in found:
            yield reader


def _reader(node: ir.Node) -> WeightUse | None:
    if node.domain:
        return None
    if node.op_type == "Gather" and node.inputs[0] is not None and node.attributes.get_int("axis", 0) == 0:
        return WeightUse(node=node, weight=node.inputs[0], rows_first=True, kind="embedding")
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    if weight is None:
        return None
    kind: Kind = "head" if _is_head(node) else "weight"
    given = str(node.inputs[0].name) if node.inputs[0] is not None else ""
    before = weight.producer()
    if before is None:
        return WeightUse(node=node, weight=weight, rows_first=False, kind=kind, input=given)
    if before.op_type == "Transpose" and before.inputs[0] is not None:
        return WeightUse(node=node, weight=before.inputs[0], rows_first=True, kind=kind, input=given)
    return None


def _is_head(node: ir.Node) -> bool:
    """Whether nothing but arithmetic stands between the product and the logits."""
    value = node.outputs[0]
    while not value.is_graph_output():
        users = [user for user, _ in value.uses()]
        if len(users) != 1 or users[0].op_type not in BEHIND_THE_HEAD:
            return False
        value = users[0].outputs[0]
    return bool(value.name == "logits")


@dataclass(kw_only=True)
class Rewriting:
    """One graph on its way to fewer bits; a matrix that several nodes read in the same bits is stored once.

    Codes are made while the file is written: those of one matrix are held at a time.
    """

    graph: ir.Graph
    options: OnnxOptions
    grams: Mapping[str, torch.Tensor]
    done: dict[tuple[str, int], list[ir.Value]] = field(default_factory=dict)
    held: tuple[tuple[str, int], Blocks] | None = None

    def quantise(self, reader: WeightUse, bits: int) -> None:
        """Put the quantised node in the place of the old one."""
        stored = self._stored(reader, bits)
        shape = {"bits": bits, "block_size": self.options.block}
        if reader.kind == "embedding":
            self.replace(reader.node, self._gather(reader, stored, shape))
            return
        rows, columns = reader.shape
        attributes = {"K": columns, "N": rows, **shape, "accuracy_level": INT8_PRODUCTS}
        product = ir.node("MatMulNBits", [reader.node.inputs[0], *stored], attributes, domain=CONTRIB)
        self.replace(reader.node, [product])

    def _gather(self, reader: WeightUse, stored: list[ir.Value], shape: dict[str, int]) -> list[ir.Node]:
        """Rows of the table; what pads its last block is cut off again."""
        codes, *others = stored
        (count, columns), node = reader.shape, reader.node
        flat = ir.node("Reshape", [codes, self._ints(f"{codes.name}.shape", count, -1)])
        attributes = {"gather_axis": 0, "quantize_axis": 1, **shape}
        rows = ir.node("GatherBlockQuantized", [flat.outputs[0], node.inputs[1], *others], attributes, domain=CONTRIB)
        if columns % self.options.block == 0:
            return [flat, rows]
        ends = [self._ints(f"{codes.name}.{name}", n) for name, n in (("0", 0), ("end", columns), ("axis", -1))]
        return [flat, rows, ir.node("Slice", [rows.outputs[0], *ends])]

    def _stored(self, reader: WeightUse, bits: int) -> list[ir.Value]:
        name, (rows, columns) = str(reader.weight.name), reader.shape
        if (name, bits) in self.done:
            return self.done[name, bits]
        count, byte = math.ceil(columns / self.options.block), 8 // bits

        def codes() -> torch.Tensor:
            return torch.from_numpy(self._held(reader, bits).packed())

        def scales() -> torch.Tensor:
            return self._held(reader, bits).scales

        def zeros() -> torch.Tensor:
            packed = self._held(reader, bits).packed_zeros()
            assert packed is not None
            return torch.from_numpy(packed)

        uint8, prefix = ir.DataType.UINT8, f"{name}.int{bits}"
        stored = [
            lazily(f"{prefix}.codes", codes, uint8, (rows, count, self.options.block // byte)),
            lazily(f"{prefix}.scales", scales, ir.DataType.FLOAT, (rows, count)),
        ]
        if not self.options.symmetric:
            stored.append(lazily(f"{prefix}.zeros", zeros, uint8, (rows, math.ceil(count / byte))))
        for value in stored:
            self.graph.register_initializer(value)
        self.done[name, bits] = stored
        return stored

    def _held(self, reader: WeightUse, bits: int) -> Blocks:
        """The blocks of a matrix: those asked for last are there still, for scales are written after codes."""
        key = (str(reader.weight.name), bits)
        if self.held is None or self.held[0] != key:
            self.held = None
            self.held = (key, self._blocks(reader, bits))
        return self.held[1]

    def _blocks(self, reader: WeightUse, bits: int) -> Blocks:
        """Calibrated where the inputs are known, which those of the head and the embedding need not be."""
        block, symmetric, gram = self.options.block, self.options.symmetric, self.grams.get(reader.input)
        if gram is not None and reader.kind == "weight":
            return solved(reader.matrix(), gram, bits, block, symmetric=symmetric)
        return in_blocks(reader.matrix(), bits, block, symmetric=symmetric, search=self.options.rounding == "search")

    def _ints(self, name: str, *numbers: int) -> ir.Value:
        known = self.graph.initializers.get(name)
        return known or self._initializer(ir.tensor(list(numbers), ir.DataType.INT64, name=name))

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def replace(self, old: ir.Node, new: list[ir.Node]) -> None:
        """The last of the new nodes gives what the old one gave, under its name."""
        given, gives = old.outputs[0], new[-1].outputs[0]
        name = given.name
        gives.type, gives.shape = given.type, given.shape
        self.graph.insert_before(old, new)
        for user, index in list(given.uses()):
            user.replace_input_with(index, gives)
        for index, output in enumerate(self.graph.outputs):
            if output is given:
                self.graph.outputs[index] = gives
        self.graph.remove(old, safe=True)
        gives.name = name


def _quantise(model: ir.Model, options: OnnxOptions, bits: int, known: Mapping[str, torch.Tensor]) -> None:
    graph = model.graph
    rewriting = Rewriting(graph=graph, options=options, grams=known)
    for reader in list(readers(graph)):
        wanted = _bits(reader.kind, options, bits)
        if wanted is not None:
            rewriting.quantise(reader, wanted)
    remove_unread(graph)
    graph.opset_imports[CONTRIB] = 1


def remove_unread(graph: ir.Graph) -> None:
    """Remove the matrices that nothing reads any more, and what transposed them."""
    for node in list(graph):
        if node.op_type == "Transpose" and not list(node.outputs[0].uses()) and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
    for value in list(matrices(graph)):
        if not list(value.uses()):
            del graph.initializers[value.name]


def _bits(kind: Kind, options: OnnxOptions, bits: int) -> int | None:
    """In how many bits the matrix of a reader is stored; None where it stays as it is."""
    if bits == 8 or kind == "weight":
        return bits
    asked = options.head if kind == "head" else options.embedding or options.head
    return None if asked == "float" else int(asked.removeprefix("int"))
