"""Second-order importance with the diagonal of the empirical Fisher information."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.hooks import RemovableHandle

from passes.criteria.base import AnyModel, Averaged, Finite, mean_over_ranks, merged_weights, weight_names
from passes.criteria.gradients import Graded, TrueGradients
from passes.criteria.importance import axis_sums
from passes.graph import PruningGraph, Slice
from passes.models import Weight, Window
from passes.options import ImportanceOptions


def _elements(weight: Weight, window: Window) -> torch.Tensor:
    return 0.5 * (weight.merged(window) * weight.gradient(window, quadratic=False)).square_()


class Fisher(Averaged):
    """The moving average of ½ Σ w² E[g²] over a unit's weights.

    How much the loss would grow without the unit, to second order at a minimum, with E[g²] for the diagonal of the
    Hessian: LeCun et al. 1989 (Optimal Brain Damage); Theis et al. 2018, arXiv 1801.05787. The
    expectation is over *micro-batches*: g is the gradient of the mean loss of one backward pass, so batches of one
    sequence give the empirical Fisher of sequences, and larger ones a smaller number of the same kind.
    W = W0 + sBA.

    Each weight's gradient is scored and freed as soon as the backward pass has made it: one at a time is in memory.
    """

    def __init__(self, graph: PruningGraph, options: ImportanceOptions) -> None:
        super().__init__(graph, options.smoothing)
        self._normalise = options.normalise
        self._gradients = TrueGradients()
        self._handles: list[RemovableHandle] = []
        self._weights: dict[str, Weight] = {}
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[tuple[str, Slice], torch.Tensor] = {}
        self._passes: dict[str, int] = {}

    def begin(self, model: AnyModel) -> None:
        """Ask for the gradients of all weights of units."""
        names = weight_names(self._graph)
        self._weights = merged_weights(model, names)
        self._gradients.begin(model, names)
        for name, parameter in self._gradients.parameters.items():
            hook = partial(self._see, name)
            self._handles.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]

    def end(self, model: AnyModel) -> None:
        """Ask for them no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._weights = [], {}
        self._gradients.end()
        self._clear()

    def _see(self, name: str, parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        sums = axis_sums(Graded(self._weights[name], gradient), _elements)
        self._passes[name] = self._passes.get(name, 0) + 1
        for dimension, part in self._graph.slices_of[name]:
            if part.is_weight:
                key, found = (dimension.name, part), sums.per_unit(part, dimension.size)
                self._sums[key] = self._sums[key] + found if key in self._sums else found

    def observe(self, model: AnyModel, loss_scale: float = 1.0) -> Finite:
        """Take the backward passes since the last call into the average."""
        if not self._sums:
            raise RuntimeError("there are no gradients of base weights: call begin() before the first forward pass")
        # The loss of a step is divided by its number of backward passes, k; so k Σ (g/k)² is the mean of g².
        factor = max(self._passes.values()) / loss_scale**2
        scores: dict[str, torch.Tensor] = {}
        for (name, _), sums in self._sums.items():
            mean = mean_over_ranks(factor * sums)
            share = mean / (mean.norm() + 1e-12) if self._normalise else mean
            scores[name] = scores[name].to(share.device) + share if name in scores else share
        self._clear()
        return self._take_in(scores)
