"""OBS: the loss that a unit would leave behind if the projections that read it were solved anew without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import nn

from passes.algebra import DOUBLE_COLUMNS, Surgery, damped_factor, elimination_errors
from passes.criteria.base import AnyModel, mean_over_ranks, sum_over_ranks
from passes.criteria.inputs import InputReader
from passes.graph import Dimension, PruningGraph, Role, Slice
from passes.models import Weight, module_at
from passes.options import ImportanceOptions

RIDGE = 1e-2
"""λ of both matrices, in units of their mean diagonals: that of ``passes.compensation.compensate``."""


def products(values: torch.Tensor) -> torch.Tensor:
    """Σ v vᵀ [width, width] over values [tokens, width]; fp64, where they are wide fp32."""
    values = values.to(_kept_in(values.shape[1]))
    return values.T @ values


def _kept_in(width: int) -> torch.dtype:
    return torch.float64 if width <= DOUBLE_COLUMNS else torch.float32


def held_bytes(graph: PruningGraph, dimension: Dimension) -> int:
    """What the matrices of the projections that read a dimension take until they are ranked, in bytes."""
    parts = {part.parameter for part in dimension.of_role(Role.CONSUME)}
    return sum(width**2 * _kept_in(width).itemsize for name in parts for width in graph.shapes[name])


@dataclass
class Gram:
    """Sums over vectors [width]: how many, their sum [width], and their products [width, width]."""

    count: torch.Tensor
    total: torch.Tensor
    products: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> Gram:
        """The sums of values [tokens, width]."""
        count = torch.tensor(float(len(values)), device=values.device, dtype=torch.float64)
        return cls(count, values.sum(0, dtype=torch.float64), products(values))

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
        count = self.count.clamp_min(1)
        moment, mean = self.products.double() / count, self.total / count
        return moment - torch.outer(mean, mean) if centred else moment


class Obs(InputReader[Gram]):
    """The moving average of how much the loss rises by a unit at its turn, to second order, the rest solved anew.

    Of a projection with inputs X and outputs whose gradients are g a token, G = E[xxᵀ] and F = E[ggᵀ]. F measures the
    error of the output in terms of the loss: G ⊗ F is its Hessian in the projection's weight, Kronecker-factored
    (Martens & Grosse 2015, arXiv 1503.05671; for pruning van der Ouderaa et al. 2023, arXiv 2312.17244, LLM Surgeon).
    Always the unit of least error goes first (``passes.algebra.elimination``), and W and H⁻¹ are what the units that
    went before left of them, with H = G + λ · mean(diag G) · I and F likewise:

        ½ tr(W_Sᵀ ([H⁻¹]_SS)⁻¹ W_S F)          S: the unit's inputs

    Where there is a bias, which can stand for the mean, G is centred. Hassibi & Stork 1993 (Optimal Brain Surgeon);
    for structures Kurtic et al. 2023, arXiv 2302.04089 (ZipLM). F does not change the solution, only what its error
    counts. The scores of one observation ascend in the order of removal. Dimensions are ranked each by itself, also
    where one projection reads several. W = W0 + sBA. The loss of a step is a mean over its tokens.

    Inputs are read as the masks let them through: what stays must stand for what is masked already. Of a unit that is
    masked nothing is let through, and its score is 0.

    Memory: ``held_bytes`` for all dimensions of the graph at the same time; ``passes.decide.score`` gives it one
    portion after another. Time: O(inputs³ + outputs³) a projection, at each ``observe``.
    """

    _before_masks = False

    def __init__(self, graph: PruningGraph, options: ImportanceOptions) -> None:
        super().__init__(graph, options)
        self._gradients: dict[str, torch.Tensor] = {}

    def begin(self, model: AnyModel) -> None:
        """Watch the inputs, and the gradients of the outputs."""
        super().begin(model)
        for name in self._consumers:
            hook = partial(self._after, name)
            self._handles.append(module_at(model, name).register_forward_hook(hook))

    def end(self, model: AnyModel) -> None:
        """Watch them no longer."""
        super().end(model)
        self._gradients = {}

    def _after(self, name: str, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if not torch.is_grad_enabled():
            return None
        # Frozen weights give outputs that ask for no gradient.
        read = output.view_as(output) if output.requires_grad else output.detach().requires_grad_(True)
        read.register_hook(partial(self._feel, name))  # type: ignore[no-untyped-call]
        return read

    @torch.no_grad()
    def _feel(self, name: str, gradient: torch.Tensor) -> None:
        found = products(gradient.flatten(0, -2))
        self._gradients[name] = self._gradients[name] + found if name in self._gradients else found

    def _summary(self, values: torch.Tensor) -> Gram:
        return Gram.of(values)

    def _scores(self, model: AnyModel, weights: Mapping[str, Weight], loss_scale: float) -> dict[str, torch.Tensor]:
        unseen = self._consumers.keys() - self._gradients.keys()
        if unseen:
            raise RuntimeError(f"no gradient was seen of {min(unseen)}: scores are read after the backward pass")
        for module in self._consumers:
            gram, gradient = self._seen[module], self._gradients.pop(module)
            # The loss is a mean over n tokens; so n Σ (∂L/∂y / n)² is the mean of the squares.
            self._gradients[module] = mean_over_ranks(gradient * (gram.count / loss_scale**2))
            self._seen[module] = gram.over_ranks()
        places: dict[str, list[tuple[Dimension, Slice]]] = {}
        for found in self._consumers.values():
            for dimension, part in found:
                places.setdefault(dimension.name, []).append((dimension, part))
        scores = {name: self._errors(model, parts, weights) for name, parts in places.items()}
        self._gradients = {}
        return scores

    def _errors(
        self, model: AnyModel, places: Sequence[tuple[Dimension, Slice]], weights: Mapping[str, Weight]
    ) -> torch.Tensor:
        """The scores [units] of one dimension; not finite where what was seen is not."""
        surgeries, size = [], places[0][0].size
        seen = torch.zeros(size, dtype=torch.bool)
        for _, part in places:
            biased = getattr(module_at(model, part.module, unwrapped=True), "bias", None) is not None
            sums, felt = self._seen[part.module], self._gradients[part.module].double()
            gram = sums.second_moment(centred=biased)
            if not isfinite(float(gram.sum() + felt.sum())):
                return torch.full((size,), torch.nan)
            weight = _matrix(weights[part.parameter], part.axis).double() @ damped_factor(felt, RIDGE)
            units = torch.tensor([part.indices([unit]) for unit in range(size)], device=gram.device)
            seen |= sums.products.diagonal()[units].any(1).cpu()
            surgeries.append(Surgery(torch.cholesky_inverse(damped_factor(gram, RIDGE)), weight, units))
        return (elimination_errors(surgeries) / 2).float() * seen


def _matrix(weight: Weight, axis: int) -> torch.Tensor:
    """A weight as [inputs, outputs], the inputs lying along ``axis``."""
    merged = weight.merged((slice(None), slice(None)))[0]
    return merged if axis == 0 else merged.T
