"""The least time that a call of a decoder can take here: bytes at the rate of memory, products at that of GEMM."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from exporters.calls import Call

TRIES = 9
READ_FLOATS, GEMM_ROWS, GEMM_SIZE = 1 << 27, 512, 2048
"""Half a gigabyte, which no cache holds; a product of the size of a prompt's in a model of 500M."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a thread does at best: bytes that it reads a second, and operations of an fp32 matrix product a second."""

    bytes_s: float
    flops_s: float


def machine() -> Machine:
    """Measured now, in one thread: the best of several tries of each."""
    numbers = torch.ones(READ_FLOATS)
    rows, matrix = torch.randn(GEMM_ROWS, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
    read = _least_seconds(lambda: torch.dot(numbers[: READ_FLOATS // 2], numbers[READ_FLOATS // 2 :]))
    product = _least_seconds(lambda: rows @ matrix)
    return Machine(bytes_s=4 * READ_FLOATS / read, flops_s=2 * GEMM_ROWS * GEMM_SIZE**2 / product)


def _least_seconds(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TRIES):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a graph has to do.

    ``weight_bytes``: the matrices that every call multiplies with, as they are stored; ``macs`` a token: their weights.
    ``pair_macs``: of attention, for a token and one that it looks at; ``cache_bytes`` of one token of the cache.
    """

    weight_bytes: int
    macs: int
    pair_macs: int
    cache_bytes: int

    def least_ms(self, call: Call, here: Machine) -> float:
        """Milliseconds: the larger of reading everything once and of computing everything in fp32."""
        pairs = call.tokens * call.past + call.tokens * (call.tokens + 1) // 2
        read = self.weight_bytes + call.batch * call.past * self.cache_bytes
        macs = call.batch * (call.tokens * self.macs + pairs * self.pair_macs)
        return 1000 * max(read / here.bytes_s, 2 * macs / here.flops_s)


def work(folder: Path) -> Work:
    """Of a package with ``genai_config.json``; no weights are read."""
    graph = ir.load(folder / "model.onnx").graph
    products = [each for each in (_product(node) for node in graph) if each is not None]
    sizes = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    attention = sizes["num_attention_heads"] * sizes["head_size"] * sizes["num_hidden_layers"]
    caches = [each for each in graph.inputs if str(each.name).startswith("past_key_values.")]
    return Work(
        weight_bytes=sum(read for read, _ in products),
        macs=sum(macs for _, macs in products),
        pair_macs=2 * attention,
        cache_bytes=sum(4 * int(shape[1]) * int(shape[3]) for shape in (each.shape for each in caches) if shape),
    )


def _product(node: ir.Node) -> tuple[int, int] | None:
    """Bytes and numbers of the weights that a node multiplies with, if it does."""
    if node.op_type not in ("MatMul", "MatMulNBits"):
        return None
    read = [_behind(value) for value in node.inputs[1:]]
    tensors = [value.const_value for value in read if value is not None and value.const_value is not None]
    if not tensors:
        return None
    count = math.prod(int(size) for size in tensors[0].shape)
    if node.op_type == "MatMulNBits":
        count = node.attributes.get_int("K", 0) * node.attributes.get_int("N", 0)
    return sum(tensor.nbytes for tensor in tensors), count


def _behind(value: ir.Value | None) -> ir.Value | None:
    """The weights themselves, where they are turned before they are read."""
    before = None if value is None else value.producer()
    return before.inputs[0] if before is not None and before.op_type == "Transpose" else value
