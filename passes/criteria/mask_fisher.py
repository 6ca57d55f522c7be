"""Fisher information of mask variables: how much each sample would miss a unit."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from passes.criteria.base import AnyModel, Averaged, Finite, mean_over_ranks
from passes.criteria.importance import unit_sums
from passes.criteria.inputs import InputBatch, consumers
from passes.graph import PruningGraph
from passes.models import module_at
from passes.options import ImportanceOptions


class MaskFisher(Averaged):
    """The moving average of E[(∂L/∂m_j)²] over sequences, for a factor m_j on all that unit j puts out.

    Kwon et al. 2022, arXiv 2204.09656, section 4.1: the diagonal of the empirical Fisher information of the masks. m_j
    stands at the inputs x of the consuming projections, where masks stand, so that of one sequence

        ∂L/∂m_j = Σ_t Σ_{i of unit j} x_ti · ∂L/∂(m_j x_ti)

    with x before the unit's own mask: that of a masked unit is its derivative at m_j = 0, so it can come back. L of a
    sequence is its share of the loss of the step, times the number of sequences. State is O(rows · units), and x
    until its backward pass is through.
    """

    def __init__(self, graph: PruningGraph, options: ImportanceOptions) -> None:
        super().__init__(graph, options.smoothing)
        self._consumers = consumers(graph)
        self._handles: list[RemovableHandle] = []
        self._batch: InputBatch | None = None
        self._inputs: dict[str, torch.Tensor] = {}
        self._clear()

    def _clear(self) -> None:
        self._of: tuple[int, dict[str, torch.Tensor]] = (0, {})
        """The number of a forward pass, and its ∂L/∂m [rows, units] so far."""
        self._squares: dict[str, torch.Tensor] = {}
        self._rows = 0

    def begin(self, model: AnyModel) -> None:
        """Watch the inputs and their gradients; to be called when the masks are on."""
        self._batch = InputBatch(model)
        for name in self._consumers:
            module = module_at(model, name)
            self._handles += [
                module.register_forward_pre_hook(partial(self._before, name), prepend=True),
                module.register_forward_pre_hook(partial(self._after, name)),
            ]

    def end(self, model: AnyModel) -> None:
        """Watch them no longer."""
        for handle in self._handles:
            handle.remove()
        if self._batch is not None:
            self._batch.close()
        self._handles, self._batch, self._inputs = [], None, {}
        self._clear()

    def _before(self, name: str, module: nn.Module, inputs: Any) -> None:
        self._inputs[name] = inputs[0].detach()

    def _after(self, name: str, module: nn.Module, inputs: Any) -> Any:
        values = self._inputs.pop(name)
        if not torch.is_grad_enabled():
            return None
        assert self._batch is not None
        # A node of its own: other readers of the same values have gradients of their own.
        read = inputs[0].view_as(inputs[0]) if inputs[0].requires_grad else inputs[0].detach().requires_grad_(True)
        read.register_hook(partial(self._see, name, self._batch.number, self._batch.by_row(values)))
        return (read, *inputs[1:])

    @torch.no_grad()
    def _see(self, name: str, number: int, values: torch.Tensor, gradient: torch.Tensor) -> None:
        if number != self._of[0]:
            self._settle()
            self._of, self._rows = (number, {}), self._rows + len(values)
        found = (values.float() * gradient.reshape(values.shape).float()).sum(1)
        for dimension, part in self._consumers[name]:
            share, so_far = unit_sums(found, part, dimension.size), self._of[1].get(dimension.name)
            self._of[1][dimension.name] = share if so_far is None else so_far.to(share.device) + share

    def _settle(self) -> None:
        """Square what has come together of one backward pass, a sequence at a time."""
        for name, found in self._of[1].items():
            squares = found.square().sum(0)
            self._squares[name] = self._squares[name] + squares if name in self._squares else squares
        self._of = (0, {})

    def observe(self, model: AnyModel, loss_scale: float = 1.0) -> Finite:
        """Take the backward passes since the last call into the average."""
        self._settle()
        unseen = self._graph.by_name.keys() - self._squares.keys()
        if unseen:
            raise RuntimeError(f"nothing was seen of {min(unseen)}: call begin() before the first forward pass")
        # The loss of a step is a mean over its n sequences; so n Σ (∂L/∂m / n)² is the mean of the squares.
        factor = self._rows / loss_scale**2
        scores = {name: mean_over_ranks(factor * self._squares[name]) for name in self._graph.by_name}
        self._clear()
        return self._take_in(scores)
