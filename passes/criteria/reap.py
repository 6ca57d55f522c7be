"""REAP: what an expert adds to the stream, where its router sends tokens to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from passes.criteria.base import AnyModel, Finite
from passes.criteria.importance import MovingAverage
from passes.criteria.inputs import InputBatch
from passes.criteria.wanda import Wanda
from passes.errors import UnsupportedModelError
from passes.graph import Dimension, Kind, PruningGraph, Role
from passes.models import module_at, vendor
from passes.options import ImportanceOptions
from passes.ranks import sum_over_ranks

INSIDE = (Kind.EXPERTS, Kind.EXPERT_CHANNELS)


@dataclass
class Use:
    """What came by of a stack of experts: ``tokens`` [experts], and over these the sums ``outputs`` [experts] of the
    router's weight times the output's norm, and ``channels`` [experts, channels] likewise of each channel's part.
    """

    tokens: torch.Tensor
    outputs: torch.Tensor
    channels: torch.Tensor

    def over_ranks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The means [experts] and [experts, channels] over the tokens of all ranks; 0 of an expert that has none."""
        tokens = sum_over_ranks(self.tokens).clamp_min(1)
        return sum_over_ranks(self.outputs) / tokens, sum_over_ranks(self.channels) / tokens[:, None]


class Reap:
    """The moving average of the mean of g_j(x) · ‖f_j(x)‖₂ over the tokens x that the router sends to the expert j.

    Lasby et al. 2025, arXiv 2510.13999: g_j is the router's weight, f_j the expert. A channel c inside an expert
    has its own part of the output in the place of f_j: |h_c(x)| · ‖W_:c‖₂, W the expert's down projection. Heads and
    the channels of MLPs that all tokens go through are ranked as by ``Wanda``. Each token's experts are computed a
    second time, to be looked at, under the masks and adapters that are on.
    """

    def __init__(self, graph: PruningGraph, options: ImportanceOptions) -> None:
        inside = tuple(d for d in graph.dimensions if d.kind in INSIDE)
        self._graph = replace(graph, dimensions=inside)
        self._average = MovingAverage(self._graph, options.smoothing)
        self._rest = Wanda(replace(graph, dimensions=tuple(d for d in graph.dimensions if d not in inside)), options)
        self._stacks = {_stack_of(dimension) for dimension in inside}
        self._uses: dict[str, Use] = {}
        self._handles: list[RemovableHandle] = []
        self._batch: InputBatch | None = None

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """The moving averages."""
        return {**self._rest.scores, **self._average.scores}

    def begin(self, model: AnyModel) -> None:
        """Watch the experts. Raises UnsupportedModelError for experts that cannot be asked one by one."""
        self._rest.begin(model)
        self._batch = InputBatch(model)
        for name in self._stacks:
            stack = module_at(model, name, unwrapped=True)
            if not vendor.is_expert_stack(stack):
                raise UnsupportedModelError(
                    f"{name} ({type(stack).__name__}) computes its experts together, so their outputs cannot be seen "
                    "one by one: choose a criterion that reads weights or gradients, such as loraprune or magnitude"
                )
            self._handles.append(stack.register_forward_pre_hook(partial(self._see, name)))

    def end(self, model: AnyModel) -> None:
        """Watch them no longer."""
        self._rest.end(model)
        for handle in self._handles:
            handle.remove()
        if self._batch is not None:
            self._batch.close()
        self._handles, self._batch, self._uses = [], None, {}

    @torch.no_grad()
    def _see(self, name: str, stack: nn.Module, inputs: Any) -> None:
        assert self._batch is not None
        batch = self._batch
        hidden, chosen, gates = (batch.real(name, batch.by_row(value)) for value in inputs[:3])
        gate_up, down = (getattr(stack, f"{each}_proj") for each in ("gate_up", "down"))
        use = self._uses.get(name)
        if use is None:
            experts, _, channels = down.shape
            sizes = ((experts,), (experts,), (experts, channels))
            use = self._uses[name] = Use(*(torch.zeros(size, device=hidden.device) for size in sizes))
        for expert in sorted({*chosen.flatten().tolist()}):
            tokens, place = torch.where(chosen == expert)
            inner = vendor.gated(stack, functional.linear(hidden[tokens], gate_up[expert]))
            gate = gates[tokens, place].float()
            use.tokens[expert] += len(tokens)
            use.outputs[expert] += gate @ functional.linear(inner, down[expert]).float().norm(dim=1)
            use.channels[expert] += (gate @ inner.float().abs()) * down[expert].float().norm(dim=0)

    @torch.no_grad()
    def observe(self, model: AnyModel, loss_scale: float = 1.0) -> Finite:
        """Take what came by since the last call into the averages."""
        unseen = self._stacks - self._uses.keys()
        if unseen:
            raise RuntimeError(f"nothing was seen of {min(unseen)}: call begin() before the first forward pass")
        finite = self._rest.observe(model, loss_scale) if self._rest.scores else True
        if not self._stacks:
            return finite
        means = {name: use.over_ranks() for name, use in self._uses.items()}
        self._uses = {}
        return torch.as_tensor(finite) & self._average.update(self._scores(means)).to(torch.as_tensor(finite).device)

    def _scores(self, means: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
        found = {}
        for dimension in self._graph.dimensions:
            outputs, channels = means[_stack_of(dimension)]
            at = next((part.at for part in dimension.of_role(Role.CONSUME)), None)
            found[dimension.name] = outputs if dimension.kind is Kind.EXPERTS else channels[at]
        return found


def _stack_of(dimension: Dimension) -> str:
    """The path of the stack of experts that a dimension lies in."""
    return next(part.module for part in dimension.slices if part.role is not Role.ROUTE)
