"""Both streams through one layer at a time, on hidden states that are kept between the layers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from passes.compensation.streams import ModelInputs, Reached, Sides, Streams, TokenRows, WholeModel, real_rows
from passes.errors import UnsupportedModelError
from passes.models import base_model, module_at, relative_difference, rounding_tolerance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerCall:
    """How a layer is called: its arguments after the hidden states."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]

    def __call__(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Run a layer on hidden states; the new hidden states."""
        output = layer(hidden, *self.arguments, **self.keywords)
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result


def _silence(_: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(output)


@dataclass(frozen=True)
class _Seen:
    """What a projection reads and gives, [rows, ...], and the layer's hidden states with all later projections silent;
    None if the layer was not run to its end.
    """

    inputs: torch.Tensor
    output: torch.Tensor
    after: torch.Tensor | None


@dataclass
class _State:
    """One batch: the dense hidden states after the present layer, with what was seen of its projections there; the
    pruned ones before it; and each layer's call.
    """

    batch: ModelInputs
    dense: torch.Tensor
    pruned: torch.Tensor
    calls: list[LayerCall]
    targets: dict[str, _Seen] = field(default_factory=dict)


class LayerByLayer:
    """Keeps the hidden states of both sides and takes them through one layer at a time: O(layers) in time.

    With ``residual``, what a projection is to give makes good what the residual stream lacks already: the hidden states
    after it, with all later projections silent, are to be the dense model's. That is done where the layer adds the
    projection's output to the stream as it is, which is proven on the first batch; elsewhere the target is the dense
    projection's output. Memory: hidden states of all batches, twice, and as much a few times for each projection of
    one layer.
    """

    def __init__(
        self, sides: Sides, batches: Sequence[ModelInputs], path: str, modules: Sequence[str], *, residual: bool
    ) -> None:
        self._sides, self._path, self._modules, self._residual = sides, path, modules, residual
        self._added: set[str] = set()
        count = 1 + max(_index(path, module) for module in modules)
        stack: Any = module_at(sides.model, path)
        self._layers: list[nn.Module] = list(stack)[:count]
        self._at = -1
        self._states = [self._enter(batch)[0] for batch in batches]

    @classmethod
    def try_on(
        cls, sides: Sides, batches: Sequence[ModelInputs], modules: Sequence[str], *, residual: bool
    ) -> LayerByLayer | None:
        """The streams, if all the modules lie in one plain list of layers, each fed with what the last one gave.

        That is proven on the first batch: each layer, run by itself, gives bit for bit what the next one read.
        """
        path = _layer_list(sides.model, modules)
        if path is None:
            return None
        streams = cls(sides, (), path, modules, residual=residual)
        try:
            state, read = streams._enter(batches[0])
            if len(read) < len(streams._layers):
                return None
            with sides.dense():
                for layer, call, hidden, expected in zip(streams._layers, state.calls, read, read[1:], strict=False):
                    if not torch.equal(call(layer, hidden), expected):
                        return None
        except (TypeError, UnsupportedModelError, ValueError):
            return None
        return cls(sides, batches, path, modules, residual=residual)

    @property
    def residual(self) -> frozenset[str]:
        """The projections so far whose target made good what the residual stream lacked."""
        return frozenset(self._added)

    def rows(self, module: str) -> Iterator[TokenRows]:
        """See Streams."""
        self._advance(_index(self._path, module))
        for state in self._states:
            seen, target = self._through(state, self._at, module, state.pruned), state.targets[module]
            wanted = target.output
            if seen.after is not None and target.after is not None:
                wanted = seen.output + (target.after - seen.after).flatten(0, -2)
            yield TokenRows(seen.inputs, seen.output, wanted).of(real_rows(self._sides.model, state.batch, module))

    def _advance(self, index: int) -> None:
        """Take the pruned side up to a layer, through what is compensated by now, and the dense one through it."""
        while self._at < index:
            at = self._at + 1
            for number, state in enumerate(self._states):
                if self._at >= 0:
                    state.pruned = state.calls[self._at](self._layers[self._at], state.pruned)
                    state.calls[self._at] = LayerCall((), {})  # nothing more to hold on to
                with self._sides.dense():
                    if number == 0 and self._residual:
                        self._added |= {module for module in self._sites(at) if self._is_added(state, at, module)}
                    state.targets = {
                        module: self._through(state, at, module, state.dense) for module in self._sites(at)
                    }
                    state.dense = self._dense_after(state, at)
            self._at = at

    def _dense_after(self, state: _State, at: int) -> torch.Tensor:
        """The dense hidden states after a layer: those seen with its last projection, which silences nothing."""
        last = next(reversed(state.targets.values()), None)
        if last is not None and last.after is not None:
            return last.after
        return state.calls[at](self._layers[at], state.dense)

    def _sites(self, at: int) -> list[str]:
        """The projections of a layer, in the order in which they run."""
        return [module for module in self._modules if _index(self._path, module) == at]

    def _is_added(self, state: _State, at: int, module: str) -> bool:
        """Whether the layer adds the projection's output to the hidden states as it is: a large push comes through."""
        plain = self._through(state, at, module, state.dense, whole=True)
        assert plain.after is not None
        if plain.after.flatten(0, -2).shape != plain.output.shape:
            return False
        noise = torch.randn(plain.output.shape, generator=torch.Generator().manual_seed(0))
        push = noise.to(plain.output) * plain.after.abs().max()
        pushed = self._through(state, at, module, state.dense, push=push, whole=True)
        assert pushed.after is not None
        difference = relative_difference((pushed.after - plain.after).flatten(0, -2), push)
        return difference <= rounding_tolerance(push.dtype)

    def _through(
        self,
        state: _State,
        at: int,
        module: str,
        hidden: torch.Tensor,
        *,
        push: torch.Tensor | None = None,
        whole: bool = False,
    ) -> _Seen:
        """Run a layer in which the projections after ``module`` give zero, as far as is needed.

        ``push`` is added to what the projection gives; ``whole``: to the end in any case.
        """
        found: list[torch.Tensor] = []
        whole = whole or module in self._added

        def look(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            found.extend(tensor.flatten(0, -2) for tensor in (inputs[0], output))
            if not whole:
                raise Reached
            return None if push is None else output + push.view_as(output)

        sites, after = self._sites(at), None
        with ExitStack() as stack:
            stack.callback(module_at(self._sides.model, module).register_forward_hook(look).remove)
            for later in sites[sites.index(module) + 1 :]:
                stack.callback(module_at(self._sides.model, later).register_forward_hook(_silence).remove)
            with suppress(Reached):
                after = state.calls[at](self._layers[at], hidden)
        return _Seen(found[0], found[1], after)

    def _enter(self, batch: ModelInputs) -> tuple[_State, list[torch.Tensor]]:
        """One dense pass: the hidden states before the first layer, each layer's call, and what each layer read."""
        calls: list[LayerCall] = []
        read: list[torch.Tensor] = []

        def hook(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            rest = dict(keywords)
            hidden, *others = inputs if inputs else (rest.pop("hidden_states"),)
            if layer is not self._layers[len(calls)]:
                raise UnsupportedModelError("the layers run in another order than they are listed in")
            calls.append(LayerCall(tuple(others), rest))
            read.append(hidden)
            if len(calls) == len(self._layers):
                raise Reached

        handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in self._layers]
        try:
            with self._sides.dense():
                self._sides.model(**batch)
        except Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return _State(batch, read[0], read[0], calls), read


def _layer_list(model: PreTrainedModel | PeftModel, modules: Sequence[str]) -> str | None:
    """The plain name of the one list of layers that all these modules lie in."""
    base, parts = base_model(model), modules[0].split(".")
    for n in range(1, len(parts)):
        path = ".".join(parts[:n])
        if isinstance(module_at(base, path), nn.ModuleList):
            return path if all(module.startswith(f"{path}.") for module in modules) else None
    return None


def _index(path: str, module: str) -> int:
    return int(module.removeprefix(f"{path}.").partition(".")[0])


def streams_through(sides: Sides, batches: Sequence[ModelInputs], modules: Sequence[str], *, residual: bool) -> Streams:
    """Layer by layer where the structure allows it, else the whole model for each projection (without ``residual``)."""
    found = LayerByLayer.try_on(sides, batches, modules, residual=residual)
    if found is None:
        logger.info("the model is no plain list of layers: each projection is calibrated by whole forward passes")
    return found or WholeModel(sides, batches)
