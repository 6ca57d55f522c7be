"""Masks: which units a forward pass lets through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from passes.graph import Kind, Masks, PruningGraph, Role, Slice, full_masks
from passes.models.base import module_at
from passes.models.skips import Skips


class MaskedModel:
    """Hooks that silence units: z = (xW0 + s·xBA) ⊙ M (LoRAPrune), where the units' outputs are read.

    The factor M stands at the input of the consuming projection, which is the same function with the same gradients as
    at the outputs of the producing ones, costs one product instead of two or three, and holds for activations that do
    not map 0 to 0: exactly what removing the unit computes. Where a norm over all units stands between, M is applied
    before it too. Hidden channels, which norms read as well, are masked at the outputs of all that write them. Channels
    inside stacked experts are masked on the consuming weight; a masked expert is hidden from its router. Whole layers
    and blocks are skipped (``passes.models.skips``); what is masked inside a skipped one does not matter, and may be
    everything. There is no straight-through estimator.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, graph: PruningGraph) -> None:
        self._graph = graph
        self._model = model
        self._factors: dict[tuple[str, Role], torch.Tensor] = {}
        self._on = True
        self._handles: list[RemovableHandle] = []
        for key in self._sites():
            self._handles += self._hook(*key)
        self._skips = Skips(model, graph)
        self.set(full_masks(graph))

    def set(self, masks: Masks) -> None:
        """Use these masks from the next forward pass on."""
        self._skips.set(masks, self._graph)
        masks = self._open_where_skipped(masks)
        for key, places in self._sites().items():
            lengths = {self._graph.shapes[part.parameter][part.axis] for _, part in places}
            stacked = {part.at for _, part in places} - {None}
            shape = (len(stacked), 1, lengths.pop()) if stacked else (lengths.pop(),)
            keep = torch.ones(shape, dtype=torch.bool)
            for dimension, part in places:
                gone = (~masks[dimension]).nonzero().flatten().tolist()
                row = keep if part.at is None else keep[part.at, 0]
                row[part.indices(gone)] = False
            self._factors[key] = keep.to(next(module_at(self._model, key[0]).parameters()).device)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Let everything through inside the block; the masks themselves stay set. Costs nothing to switch."""
        was, self._on = self._on, False
        self._skips.active = False
        try:
            yield
        finally:
            self._on = self._skips.active = was

    def remove(self) -> None:
        """Take the hooks off."""
        self._skips.remove()
        for handle in self._handles:
            handle.remove()

    def _open_where_skipped(self, masks: Masks) -> Masks:
        """The masks with everything on inside of what is skipped: a router without experts could not run."""
        skipped = (name for name, (owner, unit) in self._graph.inside.items() if not masks[owner][unit])
        return {**masks, **{name: torch.ones_like(masks[name]) for name in skipped}}

    def _sites(self) -> dict[tuple[str, Role], list[tuple[str, Slice]]]:
        """Where factors stand: module and role, with the dimensions and slices that make up the factor."""
        found: dict[tuple[str, Role], list[tuple[str, Slice]]] = {}
        for dimension in self._graph.dimensions:
            for part in dimension.slices:
                if dimension.kind is Kind.HIDDEN:
                    if part.role is Role.PRODUCE:
                        found.setdefault((part.module, part.role), []).append((dimension.name, part))
                elif part.role in (Role.CONSUME, Role.ROUTE):
                    found.setdefault((part.module, part.role), []).append((dimension.name, part))
                elif part.role is Role.NORM:
                    found.setdefault((part.source, part.role), []).append((dimension.name, part))
        return found

    def _hook(self, name: str, role: Role) -> Iterator[RemovableHandle]:
        module, bare = (module_at(self._model, name, unwrapped=bare) for bare in (False, True))
        key = (name, role)

        def factor() -> torch.Tensor | None:
            return self._factors[key] if self._on else None

        if role is Role.ROUTE:
            yield from _route(bare, factor)
        elif role in (Role.NORM, Role.PRODUCE):
            yield module.register_forward_hook(lambda _, __, output: _product(output, factor()))
        elif any(part.at is not None for _, part in self._sites()[key]):
            leaf = next(part.parameter for _, part in self._sites()[key]).rpartition(".")[2]
            yield from _mask_parameter(bare, leaf, factor)
        else:
            yield module.register_forward_pre_hook(lambda _, inputs: (_product(inputs[0], factor()), *inputs[1:]))


Factor = Callable[[], torch.Tensor | None]
"""What to multiply with; None while masks are off."""


def _product(tensor: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    return tensor if factor is None else tensor * factor.to(tensor.dtype)


def _route(router: nn.Module, factor: Factor) -> Iterator[RemovableHandle]:
    """The router sees only what it has of the experts that are on; its choices are numbered as before."""
    own: dict[str, Any] = {}

    def hide(module: nn.Module, inputs: Any) -> None:
        keep = factor()
        if keep is not None:
            # An instance attribute goes before a registered parameter.
            hidden = _of_experts(module, keep)
            own.update({name: module.__dict__[name] for name in hidden.keys() & module.__dict__.keys()})
            own["hidden"] = hidden.keys()
            module.__dict__.update(hidden)

    def number(
        module: nn.Module, inputs: Any, output: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, ...] | None:
        for name in own.pop("hidden", ()):
            module.__dict__.pop(name, None)
        module.__dict__.update(own)
        own.clear()
        keep = factor()
        if output is None or keep is None:  # the router failed, and its own error is on the way; or masks are off
            return None
        *others, chosen = output
        return (*others, keep.nonzero().flatten()[chosen])

    yield router.register_forward_pre_hook(hide)
    yield router.register_forward_hook(number, always_call=True)


def _of_experts(router: nn.Module, keep: torch.Tensor) -> dict[str, Any]:
    """What a router has of the experts that are on: the rows of its tensors, and their number where it says that."""
    tensors = [*router.named_parameters(recurse=False), *router.named_buffers(recurse=False)]
    rows = {name: tensor[keep] for name, tensor in tensors if tensor.dim() and len(tensor) == len(keep)}
    said = [name for name, value in vars(router).items() if type(value) is int and "expert" in name]
    return {**rows, **{name: int(keep.sum()) for name in said if vars(router)[name] == len(keep)}}


class _Product(nn.Module):
    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self._factor = factor

    def forward(self, parameter: torch.Tensor) -> torch.Tensor:
        return parameter * self._factor.to(parameter.dtype)


def _mask_parameter(module: nn.Module, name: str, factor: Factor) -> Iterator[RemovableHandle]:
    """The parameter is multiplied while the module runs, after whatever an adapter adds to it."""

    def put(module: nn.Module, inputs: Any) -> None:
        keep = factor()
        if keep is not None:
            parametrize.register_parametrization(module, name, _Product(keep), unsafe=True)

    def take(module: nn.Module, inputs: Any, output: Any) -> None:
        if factor() is None:
            return
        steps: Any = module.parametrizations[name]  # type: ignore[index]
        if len(steps) == 1:
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        else:
            del steps[-1]

    yield module.register_forward_pre_hook(put)
    yield module.register_forward_hook(take, always_call=True)


@contextmanager
def masked(model: PreTrainedModel | PeftModel, graph: PruningGraph, masks: Masks) -> Iterator[MaskedModel]:
    """The model under the masks, inside the block."""
    hooks = MaskedModel(model, graph)
    try:
        hooks.set(masks)
        yield hooks
    finally:
        hooks.remove()
