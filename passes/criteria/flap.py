"""FLAP: how much a unit fluctuates about its mean, which a bias could stand for."""

from __future__ import annotations

import torch

from passes.criteria.importance import axis_sums
from passes.criteria.inputs import InputCriterion, Moments
from passes.graph import Slice
from passes.models import Weight, Window


def _squared(weight: Weight, window: Window) -> torch.Tensor:
    return weight.merged(window).square()


class Flap(InputCriterion):
    """The moving average of Var(X_j) · ‖W_:j‖₂², in the mean over the inputs j of the unit (the channels of its heads).

    An et al. 2023, arXiv 2312.11983, its fluctuation metric (WIFV). With ``normalise`` the scores of all inputs of a
    projection, so of a layer and kind, are standardised to mean 0 and standard deviation 1 before the mean, as there,
    so that layers and kinds compete in one ranking (here: ``layout="per-layer"`` with ``comparison="raw"``); and the
    lowest of all units is subtracted, so that none is negative, which changes no order. The variance is over tokens.
    W = W0 + sBA.
    """

    def _along(self, weight: Weight, axis: int, moments: Moments) -> torch.Tensor:
        sums = axis_sums(weight, _squared)
        along = (sums.columns[0] if axis else sums.rows[0]) * moments.variance
        return (along - along.mean()) / (along.std() + 1e-12) if self._options.normalise else along

    def _share(self, part: Slice) -> float:
        return 1 / part.width

    def _finish(self, scores: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self._options.normalise:
            return scores
        device = next(iter(scores.values())).device
        lowest = torch.stack([score.min().to(device) for score in scores.values()]).min()
        return {name: score - lowest.to(score.device) for name, score in scores.items()}
