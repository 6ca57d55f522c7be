"""Comparing what a graph gives with what torch gives, tensor by tensor."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from passes.errors import PostconditionError
from passes.models import Parity, relative_difference

logger = logging.getLogger(__name__)


def require_parity(
    name: str,
    actual: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    rows: Mapping[str, torch.Tensor],
    tolerance: float,
) -> Parity:
    """The largest relative difference over all tensors, within ``tolerance``.

    ``rows`` holds for a tensor the boolean mask (batch, tokens) of what is compared; caches (batch, heads, tokens,
    head_dim) have their tokens second to last, all others behind the batch. A tensor without a mask is compared whole.
    Raises ``PostconditionError`` naming the case, the number, and where the two part.
    """
    differences = {}
    for key, theirs in expected.items():
        ours = actual[key]
        if key in rows and ours.shape == theirs.shape:
            ours, theirs = (_by_token(each)[rows[key]] for each in (ours, theirs))
        value = relative_difference(ours, theirs)
        differences[key] = float("inf") if value != value else value
    parity = Parity(name, max(differences.values()), tolerance)
    if not parity.holds:
        raise PostconditionError(f"export: {parity}; {_culprit(differences, tolerance)}")
    logger.info("%s", parity)
    return parity


def _by_token(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(1, 2) if tensor.ndim == 4 else tensor


def _culprit(differences: Mapping[str, float], tolerance: float) -> str:
    """Where the first difference is: caches are named by layer, key before value, in the order of computation."""
    caches = {name: value for name, value in differences.items() if name.startswith("present.")}
    for name, value in caches.items():
        if not value <= tolerance:
            layer = name.split(".")[1]
            return f"the first difference is in {name}, so at or before layer {layer}'s attention"
    wrong = ", ".join(f"{name} ({value:.1e})" for name, value in differences.items() if not value <= tolerance)
    if caches:
        return f"all caches agree, so {wrong} differs in the last layer, the final norm or the head"
    return f"it is in {wrong}"
