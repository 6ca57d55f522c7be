"""Rescale: what keeps an RMS norm the same function when some of the units that it normalises are removed.

With the n - m removed of n units masked, the norm computes x / sqrt(Σ / n + eps) * w, Σ being the sum of the squares of
what is left. Over m units alone the mean is Σ / m. Two exact ways make up for it, with c = sqrt(m / n):

* *one source*: the module that produces x produces c·x, and the weight becomes w / c. eps stays.
* *the residual stream*, which every layer writes: eps becomes eps·n/m in the configuration, and the weight w / c, as
  Σ/m + eps·n/m = (Σ/n + eps)·n/m. What writes the stream stays as it is. Norms of queries and keys, which build their
  eps from the same entry and lose no unit, get inputs that are 1 / c as large.

A norm that multiplies by w + 1 gets (w + 1) / c - 1. Where the class multiplies the embedding by a number s that it
derives from the hidden size, the embedding becomes E·s(n)/s(m); a head tied to it is made up for in the last norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from passes.graph import Dimension, Kept, PruningGraph, Role


@dataclass(frozen=True)
class Rescale:
    """What happens to a parameter p: it becomes (p + offset) * factor - offset, rounded once."""

    factor: float = 1.0
    offset: float = 0.0

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rescaled tensor, of the same dtype."""
        return ((tensor.double() + self.offset) * self.factor - self.offset).to(tensor.dtype)


@dataclass(frozen=True)
class Scales:
    """What the token embedding is multiplied by, in the dense and in the compact model, and whether the head is tied
    to it.
    """

    dense: float = 1.0
    compact: float = 1.0
    tied: bool = False


UNSCALED = Scales()


def rescales(graph: PruningGraph, kept: Kept, scales: Scales = UNSCALED) -> dict[str, Rescale]:
    """What happens to the parameters of a graph when these units are kept; absent: nothing."""
    found: dict[str, Rescale] = {}
    for parameter, factor, offset in _factors(graph, kept, scales):
        before = found.get(parameter, Rescale())
        found[parameter] = Rescale(before.factor * factor, max(before.offset, offset))
    return {parameter: each for parameter, each in found.items() if each.factor != 1}


def _factors(graph: PruningGraph, kept: Kept, scales: Scales) -> Iterator[tuple[str, float, float]]:
    """Parameter, factor and offset."""
    gone = graph.gone(kept)
    for parameter, owners in graph.slices_of.items():
        if parameter in gone:
            continue
        for source in {part.source for _, part in owners if part.role is Role.NORM} - {""}:
            factor = (graph.shape(parameter, kept)[0] / graph.shapes[parameter][0]) ** 0.5
            yield parameter, 1 / factor, 0
            yield from _outputs(graph, source, factor)
    for dimension in graph.dimensions:
        if dimension.stream is not None:
            yield from _stream(graph, dimension, (dimension.size / dimension.count(kept)) ** 0.5, scales)


def _stream(
    graph: PruningGraph, dimension: Dimension, growth: float, scales: Scales
) -> Iterator[tuple[str, float, float]]:
    assert dimension.stream is not None
    embedding = scales.dense / scales.compact
    for part in dimension.of_role(Role.NORM):
        behind = scales.tied and part.parameter == dimension.stream.final_norm
        yield part.parameter, growth / embedding if behind else growth, part.offset
    for _, source in dimension.stream.companions:
        yield from _outputs(graph, source, growth)
    yield dimension.stream.embedding, embedding, 0


def _outputs(graph: PruningGraph, module: str, factor: float) -> Iterator[tuple[str, float, float]]:
    for leaf in ("weight", "bias"):
        if f"{module}.{leaf}" in graph.shapes:
            yield f"{module}.{leaf}", factor, 0


SCALE = "scalar_embed_scale"
"""What a scaled embedding calls the number that its class derives from the hidden size."""


def embedding_scale(model: PreTrainedModel) -> float:
    """What the model multiplies its token embedding by, in the embedding's own precision; also on the meta device."""
    embedding = model.get_input_embeddings()
    scale = getattr(embedding, SCALE, None)
    return 1.0 if scale is None else float(torch.tensor(scale, device="cpu").to(embedding.weight.dtype))
