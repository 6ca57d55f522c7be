"""OBS: the error that a unit would leave if the projections that read it were solved anew without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch

from passes.criteria.base import AnyModel, sum_over_ranks
from passes.criteria.inputs import InputReader
from passes.elimination import Surgery, elimination_errors, inverted
from passes.graph import Dimension, Slice
from passes.importance import Weight
from passes.least_squares import DOUBLE_COLUMNS
from passes.models import module_at

RIDGE = 1e-2
"""λ of the Gram matrix, in units of its mean diagonal: that of ``passes.compensate``."""


@dataclass
class Gram:
    """Sums over vectors [width]: how many, their sum, and their products [width, width]; fp64, of wide ones fp32."""

    count: torch.Tensor
    total: torch.Tensor
    products: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> Gram:
        """The sums of values [tokens, width]."""
        values = values.to(torch.float64 if values.shape[1] <= DOUBLE_COLUMNS else torch.float32)
        count = torch.tensor(float(len(values)), device=values.device, dtype=values.dtype)
        return cls(count, values.sum(0), values.T @ values)

    def merge(self, other: Gram) -> None:
        """Take in more vectors."""
        self.count += other.count
        self.total += other.total
        self.products += other.products

    def over_ranks(self) -> Gram:
        """The sums over all ranks' vectors; these sums are used up."""
        return Gram(*(sum_over_ranks(tensor) for tensor in (self.count, self.total, self.products)))

    def second_moment(self, *, centred: bool) -> torch.Tensor:
        """XᵀX / tokens [width, width] in fp64, of the deviations from the mean if ``centred``."""
        count = self.count.double().clamp_min(1)
        moment = self.products.double() / count
        return moment - torch.outer(self.total.double() / count, self.total.double() / count) if centred else moment


class Obs(InputReader[Gram]):
    """The moving average of how much the squared output error rises by the unit, relative to the squared output.

    Of a projection with inputs X, G = XᵀX / tokens and H = G + λ · mean(diag G) · I, in the order in which the unit of
    least error goes first (``passes.elimination``), W and H⁻¹ being what the units that went before left of them:

        tr(W_Sᵀ ([H⁻¹]_SS)⁻¹ W_S) / tr(WᵀGW)          S: the unit's inputs

    Where there is a bias, which can stand for the mean, G is centred. Hassibi & Stork 1993 (Optimal Brain Surgeon);
    for structures Kurtic et al. 2023, arXiv 2302.04089 (ZipLM). The scores of one observation ascend in the order of
    removal, and the lowest k of them add up to what removing these k leaves. Dimensions are ranked each by itself, also
    where one projection reads several. W = W0 + sBA.

    Memory: [width, width] for each projection at the same time. Time: O(width³) for each, at each ``observe``.
    """

    def _summary(self, values: torch.Tensor) -> Gram:
        return Gram.of(values)

    def _scores(self, model: AnyModel, weights: Mapping[str, Weight]) -> dict[str, torch.Tensor]:
        places: dict[str, list[tuple[Dimension, Slice]]] = {}
        for found in self._consumers.values():
            for dimension, part in found:
                places.setdefault(dimension.name, []).append((dimension, part))
        for module, gram in self._seen.items():
            self._seen[module] = gram.over_ranks()
        return {name: self._errors(model, parts, weights) for name, parts in places.items()}

    def _errors(
        self, model: AnyModel, places: Sequence[tuple[Dimension, Slice]], weights: Mapping[str, Weight]
    ) -> torch.Tensor:
        """The scores [units] of one dimension; not finite where the inputs are not."""
        energy, surgeries, size = 0.0, [], places[0][0].size
        for dimension, part in places:
            biased = getattr(module_at(model, part.module, unwrapped=True), "bias", None) is not None
            gram = self._seen[part.module].second_moment(centred=biased)
            weight = _matrix(weights[part.parameter], part.axis).to(gram)
            energy += float((weight * (gram @ weight)).sum())
            if not isfinite(energy):
                return torch.full((size,), torch.nan)
            units = torch.tensor([part.indices([unit]) for unit in range(dimension.size)], device=gram.device)
            surgeries.append(Surgery(inverted(gram, RIDGE), weight, units))
        return (elimination_errors(surgeries) / energy).float() if energy > 0 else torch.zeros(size)


def _matrix(weight: Weight, axis: int) -> torch.Tensor:
    """A weight as [inputs, outputs], the inputs lying along ``axis``."""
    merged = weight.merged((slice(None), slice(None)))[0]
    return merged if axis == 0 else merged.T
