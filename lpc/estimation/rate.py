"""How fast this machine multiplies: the products that a model is made of, for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

TOKENS = 1024
LEAST_RUNS = 3


@torch.no_grad()
def measured_rate(
    hidden: int,
    wide: int,
    dtype: torch.dtype,
    device: torch.device,
    seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Operations a second of products [tokens, hidden] x [hidden, wide] and back, over so many seconds."""
    generator = torch.Generator().manual_seed(0)
    x, up, down = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in ((TOKENS, hidden), (wide, hidden), (hidden, wide))
    )
    done, runs, began = 0.0, 0, 0.0
    while runs < LEAST_RUNS or clock() - began < seconds:
        if runs == 1:  # the first one warms up
            done, began = 0.0, clock()
        torch.nn.functional.linear(torch.nn.functional.linear(x, up), down)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        done, runs = done + 4.0 * TOKENS * hidden * wide, runs + 1
    return done / max(clock() - began, 1e-9)
