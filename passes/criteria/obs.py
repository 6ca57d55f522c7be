"""OBS: the loss that a unit would leave behind if the projections that read it were re-solved without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from passes.algebra import Gram, Surgery, damped_factor, elimination_errors, sums_in, work_bytes
from passes.criteria.base import AnyModel, mean_square_over_ranks
from passes.criteria.inputs import InputReader
from passes.criteria.portions import room_to_work, runs
from passes.graph import Dimension, PruningGraph, Role, Slice
from passes.models import Weight, module_at, unpacked
from passes.options import ImportanceOptions
from passes.ranks import sum_over_ranks

RIDGE = 1e-2
"""λ of both matrices, in units of their mean diagonals: that of ``passes.compensation.compensate``."""


def held_bytes(graph: PruningGraph, dimension: Dimension) -> int:
    """What the matrices of the projections that read a dimension take until they are ranked, in bytes."""
    parts = {part.parameter for part in dimension.of_role(Role.CONSUME)}
    return sum(width**2 * sums_in(graph.dtype, width).itemsize for name in parts for width in graph.shapes[name])


Places: TypeAlias = "Sequence[tuple[Dimension, Slice]]"
"""A dimension's projections: the dimension, and the slice of each weight that reads its units."""


class Inputs(Gram):
    """The sums over what a projection read."""

    def over_ranks(self) -> Inputs:
        """Those over all ranks' rows; these sums are used up."""
        for tensor in (self.count, self.total, self.products):
            sum_over_ranks(tensor)
        return self


class Obs(InputReader[Inputs]):
    """The moving average of how much the loss rises by a unit at its turn, to second order, the rest re-solved.

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

    G is of all that passes by, F of what is run with gradients; a sample may be run so in part.

    Inputs are read as the masks let them through: what stays must stand for what is masked already. Of a unit that is
    masked nothing is let through, and its score is 0.

    Memory: ``held_bytes`` for all dimensions of the graph at the same time; ``passes.decide.score`` gives it one
    portion after another. Time: O(inputs³ + outputs³) a projection, at each ``observe``.
    """

    _before_masks = False

    def __init__(self, graph: PruningGraph, options: ImportanceOptions) -> None:
        super().__init__(graph, options)
        self._felt: dict[str, Gram] = {}
        self._gradients: dict[str, torch.Tensor] = {}
        """The products of all gradients, while they are looked at."""

    def begin(self, model: AnyModel) -> None:
        """Watch the inputs, and the gradients of the outputs."""
        super().begin(model)
        for name in self._consumers:
            hook = partial(self._after, name)
            self._handles.append(module_at(model, name).register_forward_hook(hook))

    def end(self, model: AnyModel) -> None:
        """Watch them no longer."""
        super().end(model)
        self._felt, self._gradients = {}, {}

    def _after(self, name: str, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if not torch.is_grad_enabled():
            return None
        # Frozen weights give outputs that ask for no gradient. What is returned may be written to (Falcon adds the
        # attention's output to the MLP's in place), which neither a leaf nor a view of one allows.
        watched = output if output.requires_grad else output.detach().requires_grad_(True)
        watched.register_hook(partial(self._feel, name))  # type: ignore[no-untyped-call]
        return watched.clone()

    @torch.no_grad()
    def _feel(self, name: str, gradient: torch.Tensor) -> None:
        rows = gradient.flatten(0, -2)
        if name in self._felt:
            self._felt[name].add(rows)
        else:
            self._felt[name] = Gram(rows)

    def _summary(self, values: torch.Tensor) -> Inputs:
        return Inputs(values)

    def _scores(self, model: AnyModel, weights: Mapping[str, Weight], loss_scale: float) -> dict[str, torch.Tensor]:
        unseen = self._consumers.keys() - self._felt.keys()
        if unseen:
            raise RuntimeError(f"no gradient was seen of {min(unseen)}: scores are read after the backward pass")
        for module in self._consumers:
            gram, felt = self._seen[module], self._felt.pop(module).products
            # The loss is a mean over n tokens; so n Σ (∂L/∂y / n)² is the mean of the squares.
            self._gradients[module] = mean_square_over_ranks(felt.mul_(1 / loss_scale**2), gram.count)
            self._seen[module] = gram.over_ranks()
        places: dict[str, list[tuple[Dimension, Slice]]] = {}
        for found in self._consumers.values():
            for dimension, part in found:
                places.setdefault(dimension.name, []).append((dimension, part))
        scores: dict[str, torch.Tensor] = {}
        for alike in self._alike(model, places).values():
            room = room_to_work(self._gradients[alike[0][0][1].module].device)
            for group in runs(alike, self._work_bytes, room):
                scores |= self._errors(model, group, weights)
        self._gradients = {}
        return scores

    def _alike(self, model: AnyModel, places: Mapping[str, Places]) -> dict[object, list[Places]]:
        """The dimensions that can be ranked together: with as many projections, of one shape and alike in their units,
        on one device.
        """
        found: dict[object, list[Places]] = {}
        for parts in places.values():
            size = parts[0][0].size
            each = tuple(
                (
                    *self._sizes(part),
                    part.segments,
                    _biased(model, part),
                    self._gradients[part.module].device,
                )
                for _, part in parts
            )
            found.setdefault((size, each), []).append(parts)
        return found

    def _sizes(self, part: Slice) -> tuple[int, int]:
        """The inputs and outputs of the projection that reads a slice."""
        return self._seen[part.module].width, len(self._gradients[part.module])

    def _work_bytes(self, places: Places) -> int:
        return sum(work_bytes(*self._sizes(part)) for _, part in places)

    def _errors(
        self, model: AnyModel, group: Sequence[Places], weights: Mapping[str, Weight]
    ) -> dict[str, torch.Tensor]:
        """The scores [units] of dimensions that are alike; not finite where what was seen is not."""
        size, surgeries = group[0][0][0].size, []
        seen = torch.zeros(len(group), size, dtype=torch.bool, device=self._gradients[group[0][0][1].module].device)
        finite = torch.ones_like(seen[:, :1])
        for parts in zip(*group, strict=True):
            biased = _biased(model, parts[0][1])
            sums = [self._seen[part.module] for _, part in parts]
            gram = torch.stack([each.second_moment(centred=biased) for each in sums])
            felt = torch.stack([self._gradients[part.module].double() for _, part in parts])
            finite &= torch.isfinite(gram.sum((1, 2)) + felt.sum((1, 2)))[:, None]
            gram, felt = (matrix.nan_to_num_(0.0, 0.0, 0.0) for matrix in (gram, felt))
            weight = torch.stack([_matrix(weights[part.parameter], part.axis).double() for _, part in parts])
            units = _units(parts[0][1], size).to(gram.device)
            seen |= torch.stack([each.products.diagonal() for each in sums])[:, units].any(2)
            inverse = torch.cholesky_inverse(damped_factor(gram, RIDGE))
            surgeries.append(Surgery(inverse, weight @ damped_factor(felt, RIDGE), units))
        scores = (elimination_errors(surgeries) / 2).float() * seen
        scores = scores.where(finite, torch.nan)
        return {parts[0][0].name: score for parts, score in zip(group, scores, strict=True)}


def _biased(model: AnyModel, part: Slice) -> bool:
    return getattr(module_at(model, part.module, unwrapped=True), "bias", None) is not None


def _units(part: Slice, size: int) -> torch.Tensor:
    """The inputs that each unit owns, [units, width]."""
    unit = torch.arange(size)[:, None]
    return torch.cat([start + unit * block + torch.arange(block) for start, block in part.segments], 1)


def _matrix(weight: Weight, axis: int) -> torch.Tensor:
    """A weight as [inputs, outputs], the inputs lying along ``axis``."""
    merged = unpacked(weight).merged((slice(None), slice(None)))[0]
    return merged if axis == 0 else merged.T
