"""Wanda-sp: weights times the norms of what they read, summed over the structure."""

from __future__ import annotations

import torch

from passes.criteria.importance import axis_sums
from passes.criteria.inputs import InputCriterion, Moments
from passes.models import Weight, Window


def _absolute(weight: Weight, window: Window) -> torch.Tensor:
    return weight.merged(window).abs()


class Wanda(InputCriterion):
    """The moving average of Σ_i |W_ij| · ‖X_j‖₂ over the inputs j of the consuming projection that are the unit's.

    Sun et al. 2023, arXiv 2306.11695, eq. 1, for weights; summed over structures as Wanda-sp in FLAP, arXiv 2312.11983,
    section 4. ‖X_j‖₂ is divided by √n for n tokens, which changes no order and makes steps comparable. W = W0 + sBA.
    """

    def _along(self, weight: Weight, axis: int, moments: Moments) -> torch.Tensor:
        sums = axis_sums(weight, _absolute)
        along = sums.columns[0] if axis else sums.rows[0]
        return along * moments.mean_square.sqrt()
