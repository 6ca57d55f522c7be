"""Constants that a class derives from its configuration, which a smaller model must not lose."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from passes.graph import Dimension, Role
from passes.shrink import SCALE

EPSILONS = ("variance_epsilon", "eps")
"""What RMS norms call their epsilon."""


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


@torch.no_grad()
def norm_offset(norm: nn.Module) -> float | None:
    """What an RMS norm adds to its weight w, 0 or 1: it computes x / sqrt(mean(x²) + eps) * (w + offset).

    None if the module computes something else. It may be on the meta device: a copy is run on random inputs [4, size].
    """
    epsilon = next((getattr(norm, name) for name in EPSILONS if isinstance(getattr(norm, name, None), float)), None)
    if epsilon is None:
        return None
    copied, generator = copy.deepcopy(norm).to_empty(device="cpu").float(), torch.Generator().manual_seed(0)
    weight = copied.get_parameter("weight")
    weight.copy_(torch.randn(weight.shape, generator=generator, device="cpu"))
    scale = math.sqrt(epsilon)  # so that epsilon counts
    x = scale * (1 + torch.randn(4, len(weight), generator=generator, device="cpu"))
    normalised = x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()
    actual = copied(x)
    for offset in (0.0, 1.0):
        if torch.allclose(actual, normalised * (weight + offset), rtol=1e-4, atol=1e-5):
            return offset
    return None
