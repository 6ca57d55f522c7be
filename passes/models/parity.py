"""Parity: how far two computations that must agree are apart, and how far they may be."""

from __future__ import annotations

from dataclasses import dataclass

import torch

EPSILONS_ALLOWED = 80
"""Rounding errors, in units of the dtype's machine epsilon, that a whole fp32 forward pass may accumulate."""

HALF_EPSILONS_ALLOWED = 12
"""The same for bf16 and fp16, whose products are accumulated in fp32 and rounded once a layer."""


@dataclass(frozen=True)
class Parity:
    """One number of the translation validation.

    ``value`` is the largest absolute difference divided by the largest absolute reference value (0 when exact);
    it must not exceed ``tolerance``.
    """

    name: str
    value: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance (a NaN never is)."""
        return self.value <= self.tolerance

    def __str__(self) -> str:
        sign = "<=" if self.holds else ">"
        return f"{self.name}: relative difference {self.value:.2e} {sign} {self.tolerance:.0e}"


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest ``|actual - expected|`` over the largest ``|expected|``; NaN anywhere gives NaN.

    Both tensors have the same shape; a mismatch is an infinite difference.
    """
    if actual.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0 or torch.equal(actual, expected):
        return 0.0
    reference = expected.detach().double()
    difference = (actual.detach().double() - reference).abs().max()
    return float(difference / reference.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def rounding_tolerance(dtype: torch.dtype) -> float:
    """The relative difference that rounding alone may cause in a model of this dtype: 1e-5 in fp32."""
    epsilon = torch.finfo(dtype).eps
    allowed = EPSILONS_ALLOWED if dtype in (torch.float32, torch.float64) else HALF_EPSILONS_ALLOWED
    return float(f"{epsilon * allowed:.0e}")
