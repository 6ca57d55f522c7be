"""The attention blocks of a decoder's graph: the projections, and opset 23's ``Attention`` between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.onnx.graph import GraphBuilder
from exporters.onnx.layers import linear, norm
from exporters.onnx.options import BATCH, PAST, SEQUENCE, TOTAL


@dataclass(frozen=True)
class CachedAttention:
    """An attention module, its name, its place in the cache and its sliding window in tokens (None: all of them)."""

    module: Any
    name: str
    place: int
    window: int | None

    @property
    def size(self) -> int:
        """Values of a head."""
        return int(self.module.head_dim)

    @property
    def heads(self) -> int:
        """Query heads."""
        return int(self.module.q_proj.weight.shape[0] // self.size)

    @property
    def kv_heads(self) -> int:
        """KV heads, from the shape of the key projection."""
        return int(self.module.k_proj.weight.shape[0] // self.size)


class Attention(ABC):
    """How a graph says attention, and the sums and norms between blocks.

    Appends to ``graph`` what all blocks share, then the blocks one by one. ``inputs`` are the graph's, but for the
    cache; ``ids`` (batch, sequence) is what the embedding looks up.
    """

    def __init__(self, graph: GraphBuilder) -> None:
        self.graph = graph
        self.ids = graph.input("input_ids", ir.DataType.INT64, [BATCH, SEQUENCE])
        self.mask = graph.input("attention_mask", ir.DataType.INT64, [BATCH, TOTAL])
        self.inputs = [self.ids, self.mask]

    def block(self, block: CachedAttention, hidden: ir.Value) -> tuple[ir.Value, list[ir.Value], list[ir.Value]]:
        """What a block adds to the residual stream, its past and its present key and value."""
        graph, module, name = self.graph, block.module, block.name
        shape: list[int | str] = [BATCH, block.kv_heads, PAST, block.size]
        past = [
            graph.input(f"past_key_values.{block.place}.{part}", graph.float_type, shape) for part in ("key", "value")
        ]
        packed = linear(graph, f"{name}.qkv_proj", hidden, module.q_proj, module.k_proj, module.v_proj)
        mixed, *present = self.mix(block, packed, past)
        for each in present:
            graph.output(each, [BATCH, block.kv_heads, TOTAL, block.size])
        return linear(graph, f"{name}.o_proj", mixed, module.o_proj), past, present

    @abstractmethod
    def mix(self, block: CachedAttention, packed: ir.Value, past: Sequence[ir.Value]) -> list[ir.Value]:
        """Of the projections side by side (batch, sequence, q + k + v): mixed values, present key and value."""

    def in_order(self, hidden: ir.Value) -> ir.Value:
        """The last hidden states (batch, sequence, hidden) in the order of the inputs."""
        return hidden

    def add_and_norm(self, stream: ir.Value, more: ir.Value, module: Any, name: str) -> tuple[ir.Value, ir.Value]:
        """The residual stream with what a block adds to it, and the RMS norm of that."""
        added = self.graph.op("Add", stream, more)
        return added, norm(self.graph, module, name, added)

    def parts(self, block: CachedAttention, packed: ir.Value) -> list[ir.Value]:
        """Query, key and value, the first two normed head by head where the module does that (Qwen3)."""
        graph, widths = self.graph, [heads * block.size for heads in (block.heads, block.kv_heads, block.kv_heads)]
        query, key, value = graph.ops("Split", 3, packed, graph.ints(*widths), axis=-1)
        return [self._head_norm(block, "q_norm", query), self._head_norm(block, "k_norm", key), value]

    def _head_norm(self, block: CachedAttention, name: str, hidden: ir.Value) -> ir.Value:
        graph, module = self.graph, getattr(block.module, name, None)
        if module is None:
            return hidden
        split = graph.op("Reshape", hidden, graph.ints(0, 0, -1, block.size))
        return graph.op("Reshape", norm(graph, module, f"{block.name}.{name}", split), graph.ints(0, 0, -1))


class PlainAttention(Attention):
    """Opset 23's ``RotaryEmbedding`` and ``Attention``: any mask, and positions that go on for ever."""

    def __init__(self, graph: GraphBuilder, rotary: Any, windows: Sequence[int | None]) -> None:
        super().__init__(graph)
        positions = graph.input("position_ids", ir.DataType.INT64, [BATCH, SEQUENCE])
        self.inputs.append(positions)
        self.cos, self.sin = self._rotation(rotary, positions)
        self.masks = self._masks(windows)

    def mix(self, block: CachedAttention, packed: ir.Value, past: Sequence[ir.Value]) -> list[ir.Value]:
        """See ``Attention``."""
        graph, place = self.graph, block.place
        query, key, value = self.parts(block, packed)
        query = graph.op("RotaryEmbedding", query, self.cos, self.sin, num_heads=block.heads)
        key = graph.op("RotaryEmbedding", key, self.cos, self.sin, num_heads=block.kv_heads)
        return graph.ops(
            "Attention",
            3,
            query,
            key,
            value,
            self.masks[block.window],
            *past,
            names=("", f"present.{place}.key", f"present.{place}.value"),
            q_num_heads=block.heads,
            kv_num_heads=block.kv_heads,
            scale=float(block.module.scaling),
        )

    def _rotation(self, rotary: Any, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        """cos and sin of position x frequency, in fp32 as in torch, (batch, sequence, head_dim / 2)."""
        graph = self.graph
        frequencies = graph.constant("rotary_frequencies", rotary.inv_freq.detach().cpu().float().numpy())
        steps = graph.op("Unsqueeze", graph.op("Cast", positions, to=ir.DataType.FLOAT.value), graph.ints(2))
        angles = graph.op("Mul", steps, frequencies)
        return self._scaled(graph.op("Cos", angles), rotary), self._scaled(graph.op("Sin", angles), rotary)

    def _scaled(self, values: ir.Value, rotary: Any) -> ir.Value:
        graph = self.graph
        if rotary.attention_scaling != 1.0:
            scale = graph.constant("rotary_scaling", np.array(rotary.attention_scaling, np.float32))
            values = graph.op("Mul", values, scale)
        return values if graph.float_type == ir.DataType.FLOAT else graph.op("Cast", values, to=graph.float_type.value)

    def _masks(self, windows: Sequence[int | None]) -> dict[int | None, ir.Value]:
        """Additive masks (batch, 1, sequence, total), one for each different window: causal, nothing reads padding.

        Windows count positions, not slots (``exporters.onnx.windows``).
        """
        graph, mask = self.graph, self.mask
        total, sequence = graph.op("Shape", mask, start=1, end=2), graph.op("Shape", self.ids, start=1, end=2)
        keys = graph.op("Range", graph.scalar(0), graph.op("Squeeze", total), graph.scalar(1))
        past = graph.op("Sub", total, sequence)
        rows = graph.op("Range", graph.op("Squeeze", past), graph.op("Squeeze", total), graph.scalar(1))
        queries = graph.op("Unsqueeze", rows, graph.ints(1))
        real = graph.op("Unsqueeze", graph.op("Cast", mask, to=ir.DataType.BOOL.value), graph.ints(1, 2))
        causal = graph.op("And", graph.op("LessOrEqual", keys, queries), real)
        zero, masked = graph.floats("float_zero", 0.0), graph.floats("float_masked", graph.masked)
        masks = {}
        for window in dict.fromkeys(windows):
            allowed = causal
            if window is not None:
                positions = graph.op("CumSum", mask, graph.scalar(1))
                own = graph.op("Slice", positions, past, total, graph.ints(1))
                first = graph.op("Sub", graph.op("Unsqueeze", own, graph.ints(1, 3)), graph.scalar(window))
                near = graph.op("Greater", graph.op("Unsqueeze", positions, graph.ints(1, 2)), first)
                allowed = graph.op("And", causal, near)
            masks[window] = graph.op("Where", allowed, zero, masked)
        return masks
