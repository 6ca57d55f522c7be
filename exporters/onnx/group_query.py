"""Attention by onnxruntime's GroupQueryAttention: rotation inside, and a cache that can be written in place.

It takes lengths where the model has a mask: row by row the first slots of the cache hold the real tokens, and new ones
come behind them. So new tokens are sorted, real ones first, and the last hidden states are put back in order; padding
on either side, and text that goes on behind padding, then gives what each row alone gives, sliding windows included. A
chunk of more than one token behind a past is for one row, as onnxruntime says itself.

Operator: onnxruntime docs/ContribOperators.md, com.microsoft.GroupQueryAttention; its input ``query_seqlens`` would
take chunks of several rows, and only onnxruntime 1.32 has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from transformers import PreTrainedModel

from exporters.calls import GROUP_QUERY_NODE
from exporters.onnx.attention import Attention, CachedAttention
from exporters.onnx.graph import GraphBuilder
from exporters.onnx.layers import is_absent
from exporters.onnx.rewrite import CONTRIB
from exporters.onnx.verify.probes import position_limit

HEAD_MULTIPLE = 16
"""Of which a head's size must be a multiple, for onnxruntime to rotate it."""


def why_not_group_query(model: PreTrainedModel) -> str | None:
    """None if GroupQueryAttention can say the attention of a model that the builder knows, else the reason."""
    if position_limit(model) is None:
        return "its configuration has no max_position_embeddings, and GroupQueryAttention a table of all positions"
    for index, layer in enumerate(model.model.layers):
        size = 0 if is_absent(layer.self_attn) else int(layer.self_attn.head_dim)
        if size % HEAD_MULTIPLE:
            return f"layer {index} has heads of {size} values, and GroupQueryAttention rotates {HEAD_MULTIPLE} together"
    return None


class GroupQueryAttention(Attention):
    """One node a block, packed projections in unless each head is normed."""

    def __init__(self, graph: GraphBuilder, rotary: Any, positions: int) -> None:
        super().__init__(graph)
        self.table = self._table(rotary, positions)
        total, new = graph.op("Shape", self.mask, start=1, end=2), graph.op("Shape", self.ids, start=1, end=2)
        past, int32 = graph.op("Sub", total, new), ir.DataType.INT32.value
        before = graph.op("Slice", self.mask, graph.ints(0), past, graph.ints(1))
        cached = graph.op("ReduceSum", before, graph.ints(1), keepdims=0)
        last = graph.op("Sub", graph.op("Add", cached, new), graph.scalar(1))
        self.lengths = [graph.op("Cast", last, to=int32), graph.op("Cast", graph.op("Squeeze", total), to=int32)]
        self._sort(graph.op("Slice", self.mask, past, total, graph.ints(1)), new)

    def mix(self, block: CachedAttention, packed: ir.Value, past: Sequence[ir.Value]) -> list[ir.Value]:
        """See ``Attention``."""
        whole = getattr(block.module, "q_norm", None) is None
        parts = [packed, None, None] if whole else self.parts(block, packed)
        return self.graph.ops(
            GROUP_QUERY_NODE,
            3,
            *parts,
            *past,
            *self.lengths,
            *self.table,
            domain=CONTRIB,
            names=("", f"present.{block.place}.key", f"present.{block.place}.value"),
            num_heads=block.heads,
            kv_num_heads=block.kv_heads,
            scale=float(block.module.scaling),
            local_window_size=block.window or -1,
            do_rotary=1,
        )

    def in_order(self, hidden: ir.Value) -> ir.Value:
        """See ``Attention``."""
        places = self.graph.op("Unsqueeze", self.places, self.graph.ints(2))
        return self.graph.op("GatherND", hidden, places, batch_dims=1)

    def add_and_norm(self, stream: ir.Value, more: ir.Value, module: Any, name: str) -> tuple[ir.Value, ir.Value]:
        """See ``Attention``; in one node."""
        weight = self.graph.weight(f"{name}.weight", [module.weight])
        epsilon = float(module.variance_epsilon)
        normed, mean, deviation, added = self.graph.ops(
            "SkipSimplifiedLayerNormalization", 4, stream, more, weight, domain=CONTRIB, epsilon=epsilon
        )
        mean.name = deviation.name = ""
        return added, normed

    def _sort(self, real: ir.Value, new: ir.Value) -> None:
        """Real tokens of each row before padding: ``order`` and ``places`` (batch, sequence), there and back."""
        graph = self.graph
        slots = graph.op("Range", graph.scalar(0), graph.op("Squeeze", new), graph.scalar(1))
        keys = graph.op("Sub", graph.op("Mul", real, new), slots)
        order = graph.ops("TopK", 2, keys, new)[1]
        self.places = graph.ops("TopK", 2, order, new, largest=0)[1]
        self.ids = graph.op("GatherElements", self.ids, order, axis=1)

    def _table(self, rotary: Any, positions: int) -> list[ir.Value]:
        """cos and sin of every position, (positions, head_dim / 2), as torch computes them."""
        with torch.no_grad():
            numbers = rotary(torch.zeros(1, dtype=torch.float32), torch.arange(positions)[None])
        half = numbers[0].shape[-1] // 2
        kind = self.graph.float_type.numpy()
        named = zip(("rotary_cos", "rotary_sin"), numbers, strict=True)
        return [self.graph.constant(name, each[0, :, :half].float().numpy().astype(kind)) for name, each in named]
