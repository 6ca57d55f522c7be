"""How layers lie on the residual stream, found by cutting them: what a layer computes without its attention or MLP.

A layer can go where it computes ``x + f(x)``, and its attention or MLP where it is a term of f. That is proven on the
twin: with the outputs of attention and MLP replaced by zeros, the way from a layer's input to its output must lead
through additions alone. What reaches the output by way of one block only serves that block alone and goes with it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from passes.errors import UnsupportedModelError
from passes.models import vendor

NEUTRAL = ("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "ToCopy", "Unsqueeze", "Squeeze")
"""Steps of autograd that pass values on as they are."""


@dataclass(frozen=True)
class Branch:
    """Where the output of one attention or MLP comes from: ``exit`` is the module of its last projection."""

    layer: str
    exit: str


@dataclass
class _Watched:
    """One layer in one forward pass: its input, its output and what its modules with parameters returned."""

    start: torch.Tensor | None = None
    end: torch.Tensor | None = None
    outputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class ResidualStream:
    """Runs a twin, whose mixtures of experts are hidden, with branches cut. ``inputs`` are on the meta device."""

    twin: PreTrainedModel
    inputs: Mapping[str, torch.Tensor]
    layers: Sequence[str]

    def check_identity(self, branches: Sequence[Branch]) -> None:
        """Raise UnsupportedModelError unless every layer passes its input on when all these branches are cut."""
        for layer, seen in self._run({branch.exit for branch in branches}).items():
            assert seen.end is not None
            reason = _why_not_identity(seen)
            if reason:
                raise UnsupportedModelError(f"{layer} does not add to the residual stream: {reason}")
            for name in _unmoved(seen, {branch.exit for branch in branches}):
                module = self.twin.get_submodule(name)
                if not _maps_zero_to_zero(module):
                    raise UnsupportedModelError(
                        f"{name} ({type(module).__name__}) makes something of nothing, so what comes before cannot go"
                    )

    def served(self, branches: Sequence[Branch]) -> dict[str, tuple[str, ...]]:
        """The parameters that serve one of these branches alone, by its exit; at most one branch a layer is given."""
        exits = {branch.exit for branch in branches}
        runs = self._run(exits)
        parameters: dict[str, list[str]] = {}
        for name, _ in self.twin.named_parameters():
            parameters.setdefault(name.rpartition(".")[0], []).append(name)
        found = {}
        for branch in branches:
            seen = runs[branch.layer]
            modules = {*_unmoved(seen, exits), *_unused(seen)} | ({branch.exit} & seen.outputs.keys())
            found[branch.exit] = tuple(
                name for module, names in parameters.items() if module in modules for name in names
            )
        return found

    def _run(self, exits: Collection[str]) -> dict[str, _Watched]:
        """One forward pass; gradients are followed from each layer's input to its own output."""
        found = {layer: _Watched() for layer in self.layers}
        with _hooks() as handles, torch.enable_grad():
            for name, module in self.twin.named_modules():
                if name in exits:
                    handles.append(module.register_forward_hook(lambda _, __, out: torch.zeros_like(out)))
            for layer, seen in found.items():
                handles += _watch(self.twin.get_submodule(layer), layer, seen)
            self.twin.requires_grad_(False).eval()
            self.twin(**self.inputs)
        return found


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _watch(layer: nn.Module, path: str, seen: _Watched) -> Iterator[Any]:
    first = next(iter(inspect.signature(layer.forward).parameters))

    def enter(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        seen.start = (args[0] if args else kwargs[first]).detach().requires_grad_()
        return ((seen.start, *args[1:]), kwargs) if args else (args, {**kwargs, first: seen.start})

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        seen.end = output[0] if isinstance(output, tuple) else output

    yield layer.register_forward_pre_hook(enter, with_kwargs=True)
    yield layer.register_forward_hook(leave)
    for name, module in layer.named_modules(prefix=path):
        if any(True for _ in module.parameters(recurse=False)):
            yield module.register_forward_hook(_recorder(name, seen))


def _recorder(name: str, seen: _Watched) -> Any:
    def record(_: nn.Module, __: Any, output: Any) -> None:
        seen.outputs.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)

    return record


def _why_not_identity(seen: _Watched) -> str | None:
    """Why a layer whose branches are cut does not return its input, or None if it does."""
    assert seen.start is not None
    assert seen.end is not None
    if seen.end is seen.start:
        return None
    step: Any = seen.end.grad_fn
    while step is not None:
        name = type(step).__name__.partition("Backward")[0]
        before = [each for each, _ in step.next_functions if each is not None]
        if name == "AccumulateGrad":
            return None if step.variable is seen.start else "its output comes from elsewhere"
        if name not in NEUTRAL and not (name == "Add" and vendor.added_factor(step) == 1):
            return f"with attention and MLP taken out, its input still goes through {name}"
        if len(before) != 1:
            return "its input reaches its output on several ways"
        step = before[0]
    return "its output does not depend on its input"


def _unmoved(seen: _Watched, exits: Collection[str]) -> Iterator[str]:
    """The modules whose outputs do not depend on the layer's input any more: what comes behind a cut branch."""
    for name, outputs in seen.outputs.items():
        if name not in exits and not any(each.requires_grad for each in outputs):
            yield name


def _unused(seen: _Watched) -> Iterator[str]:
    """The modules whose outputs do not reach the layer's output any more: what comes before a cut branch."""
    assert seen.end is not None
    asked = [(name, each) for name, outputs in seen.outputs.items() for each in outputs if each.requires_grad]
    gradients: Sequence[torch.Tensor | None] = [None] * len(asked)
    if asked and seen.end.requires_grad:
        gradients = torch.autograd.grad(seen.end.sum(), [each for _, each in asked], allow_unused=True)
    used = {name for (name, _), gradient in zip(asked, gradients, strict=True) if gradient is not None}
    yield from (name for name in dict.fromkeys(name for name, _ in asked) if name not in used)


def _maps_zero_to_zero(module: nn.Module) -> bool:
    """Tried on the CPU with weights that are no special values; such modules are norms, small enough to build."""
    real = copy.deepcopy(module).to_empty(device="cpu").float()
    parameters = list(real.parameters())
    if any(parameter.dim() > 1 for parameter in parameters):
        return False
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()))
        return bool((real(torch.zeros(1, parameters[0].numel())) == 0).all())
