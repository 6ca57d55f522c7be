"""Constants that a class derives from its configuration, which a smaller model must not lose."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from passes.graph import Dimension, Role

EPSILONS = ("variance_epsilon", "eps")
"""What RMS norms call their epsilon."""

SCALE = "scalar_embed_scale"
"""What a scaled embedding calls the number that its class derives from the hidden size."""


def odd_constant(dense: nn.Module, smaller: nn.Module, dimension: Dimension, count: int) -> str | None:
    """A number that a class derived from the hidden size and that nothing compensates, or None.

    ``dense`` and ``smaller`` are stock models of both sizes, which may be on the meta device.
    """
    assert dimension.stream is not None
    norms = {part.module for part in dimension.of_role(Role.NORM)} | {norm for norm, _ in dimension.stream.companions}
    scaled = dimension.stream.embedding.rpartition(".")[0]
    modules = dict(smaller.named_modules())
    for name, module in dense.named_modules():
        now = vars(modules[name])
        for key, value in vars(module).items():
            if type(value) not in (int, float) or key not in now or (name, key) == (scaled, SCALE):
                continue
            allowed = {float(value)}
            if name in norms and key in EPSILONS:
                allowed = {value * dimension.size / count}
            elif value == dimension.size:
                allowed = {float(value), float(count)}
            if not any(math.isclose(now[key], each, rel_tol=1e-9) for each in allowed):
                return f"with {count} hidden channels the stock class makes {name}.{key} {now[key]}, not {min(allowed)}"
    return None


def embedding_scale(model: PreTrainedModel) -> float:
    """What the model multiplies its token embedding by, in the embedding's own precision; also on the meta device."""
    embedding = model.get_input_embeddings()
    scale = getattr(embedding, SCALE, None)
    return 1.0 if scale is None else float(torch.tensor(scale, device="cpu").to(embedding.weight.dtype))
