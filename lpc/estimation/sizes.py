"""The sizes that costs follow from: read off a graph and a configuration, no weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from passes.graph import PruningGraph, Role


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """``consumers``: inputs and outputs of each projection that reads units. ``inputs``: the sum of the inputs of all
    projections that wear an adapter, ``lora_elements``: elements of A and B at rank 1, ``adapted``: elements of what
    they are added to. ``queries``: heads x head_dim, of all layers together; ``keys`` and ``channels``: KV
    heads x head_dim and MLP channels likewise; ``adapters``: how many weights wear one.
    """

    parameters: int
    itemsize: int
    macs: int
    layers: int
    hidden: int
    queries: int
    keys: int
    channels: int
    vocabulary: int
    consumers: tuple[tuple[int, int], ...]
    inputs: int
    lora_elements: int
    adapted: int
    adapters: int

    @classmethod
    def of(cls, graph: PruningGraph, config: PreTrainedConfig) -> Sizes:
        """The sizes of a model."""
        text: Any = config.get_text_config()
        layers = int(getattr(text, "num_hidden_layers", 0) or len({d.layer for d in graph.dimensions if d.layer >= 0}))
        hidden = int(getattr(text, "hidden_size", 0) or 1)
        heads = int(getattr(text, "num_attention_heads", 0) or 1)
        head_dim = int(getattr(text, "head_dim", None) or hidden // heads)
        weights = {part.parameter: part for d in graph.dimensions if d.stream is None for part in d.weights}
        shapes = {name: graph.shapes[name] for name in weights if len(graph.shapes[name]) in (2, 3)}
        read = {
            part.parameter: part.axis
            for dimension in graph.dimensions
            if dimension.stream is None
            for part in dimension.of_role(Role.CONSUME)
            if len(graph.shapes[part.parameter]) == 2
        }
        cost = graph.cost()
        return cls(
            parameters=cost.parameters,
            itemsize=graph.dtype.itemsize,
            macs=cost.macs,
            layers=layers,
            hidden=hidden,
            queries=layers * heads * head_dim,
            keys=layers * int(getattr(text, "num_key_value_heads", None) or heads) * head_dim,
            channels=sum(d.size for d in graph.dimensions if d.kind.is_fine and d.stream is None),
            vocabulary=int(getattr(text, "vocab_size", 0)),
            consumers=tuple((graph.shapes[name][axis], graph.shapes[name][1 - axis]) for name, axis in read.items()),
            inputs=sum(_inputs(shape) for shape in shapes.values()),
            lora_elements=sum(_stack(shape) * sum(shape[-2:]) for shape in shapes.values()),
            adapted=sum(math.prod(shape) for shape in shapes.values()),
            adapters=len(shapes),
        )

    @property
    def weight_bytes(self) -> int:
        """Of all weights."""
        return self.parameters * self.itemsize

    @property
    def solved(self) -> int:
        """Elements of the projections that a compensation solves."""
        return sum(inputs * outputs for inputs, outputs in self.consumers)

    def forward(self, context: int, rank: int = 0) -> float:
        """Operations of a forward pass, a token of a sequence of ``context``, with an adapter of this rank if any.

        A multiplication and an addition are two. Attention looks at half of the context on average.
        """
        return 2.0 * (self.macs + self.queries * context + rank * self.lora_elements)

    @property
    def head(self) -> float:
        """Of it, the head's: what lies behind the layers."""
        return 2.0 * self.vocabulary * self.hidden


def _inputs(shape: tuple[int, ...]) -> int:
    return min(shape[-2:]) if len(shape) == 3 else shape[1]


def _stack(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else 1
