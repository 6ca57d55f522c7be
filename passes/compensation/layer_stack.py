"""A model's plain list of layers, each of which can be run by itself; and the model around them without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from passes.compensation.streams import ModelInputs, Reached, Sides
from passes.errors import UnsupportedModelError
from passes.models import base_model, module_at


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


class LayerStack:
    """The layers up to the last one that any of ``modules`` lies in."""

    def __init__(self, sides: Sides, path: str, modules: Sequence[str]) -> None:
        self._sides, self._path = sides, path
        stack: Any = module_at(sides.model, path)
        self.layers: list[nn.Module] = list(stack)[: 1 + max(self.index(module) for module in modules)]
        self._extras: list[int | None] = []
        """What each layer gives beside the hidden states, in a tuple; None: it gives no tuple."""

    @classmethod
    def try_on(cls, sides: Sides, batch: ModelInputs, modules: Sequence[str]) -> LayerStack | None:
        """The stack, if all the modules lie in one plain list of layers, each fed with what the last one gave.

        That is proven on the batch: each layer, run by itself as it is called where none of them computes anything,
        gives bit for bit what it gives in the dense model.
        """
        path = _layer_list(sides.model, modules)
        if path is None:
            return None
        stack = cls(sides, path, modules)
        try:
            with sides.dense():
                states = stack._whole(batch)
                hidden, calls = stack.enter(batch)
                if len(states) != len(stack.layers) or not torch.equal(hidden, states[0][0]):
                    return None
                for layer, call, (read, gave) in zip(stack.layers, calls, states, strict=True):
                    if not torch.equal(read, hidden) or not torch.equal(call(layer, read), gave):
                        return None
                    hidden = gave
        except (KeyError, TypeError, UnsupportedModelError, ValueError):
            return None
        return stack

    def index(self, module: str) -> int:
        """Which layer a module lies in."""
        return int(module.removeprefix(f"{self._path}.").partition(".")[0])

    def name_in_layer(self, module: str) -> str:
        """A module's name in the layer that it lies in."""
        return module.removeprefix(f"{self._path}.").partition(".")[2]

    def enter(self, batch: ModelInputs) -> tuple[torch.Tensor, list[LayerCall]]:
        """The hidden states before the first layer, and each layer's call; no layer is run."""
        calls: list[LayerCall] = []
        first: list[torch.Tensor] = []

        def look(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            hidden, call = _taken_apart(inputs, keywords)
            self._check_turn(layer, len(calls))
            first.append(hidden)
            calls.append(call)
            if len(calls) == len(self.layers):
                raise Reached

        handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in self.layers]
        try:
            with self._idle(None), suppress(Reached):
                self._sides.model(**batch)
        finally:
            for handle in handles:
                handle.remove()
        return first[0], calls

    def outputs(self, batch: ModelInputs, hidden: torch.Tensor) -> Mapping[str, Any]:
        """What the model gives on a batch if these are the hidden states after the last of the layers."""
        with self._idle(hidden):
            outputs: Mapping[str, Any] = self._sides.model(**batch)
        return outputs

    def _whole(self, batch: ModelInputs) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """One pass through all of the layers: the hidden states that each reads and gives."""
        states: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._extras = []

        def look(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            self._check_turn(layer, len(states))
            gave = output[0] if isinstance(output, tuple) else output
            states.append((_taken_apart(inputs, keywords)[0], gave))
            self._extras.append(len(output) - 1 if isinstance(output, tuple) else None)
            if len(states) == len(self.layers):
                raise Reached

        handles = [layer.register_forward_hook(look, with_kwargs=True) for layer in self.layers]
        try:
            with suppress(Reached):
                self._sides.model(**batch)
        finally:
            for handle in handles:
                handle.remove()
        return states

    def _check_turn(self, layer: nn.Module, turn: int) -> None:
        if layer is not self.layers[turn]:
            raise UnsupportedModelError("the layers run in another order than they are listed in")

    @contextmanager
    def _idle(self, last: torch.Tensor | None) -> Iterator[None]:
        """Inside the block each layer gives what it reads; the last one ``last``, if it is given."""
        were = [layer.__dict__.get("forward") for layer in self.layers]
        try:
            for number, (layer, extras) in enumerate(zip(self.layers, self._extras, strict=True), 1):
                given = last if number == len(self.layers) else None
                layer.__dict__["forward"] = partial(_give, extras, given)
            yield
        finally:
            for layer, was in zip(self.layers, were, strict=True):
                layer.__dict__.pop("forward", None)
                if was is not None:
                    layer.__dict__["forward"] = was


def _taken_apart(inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[torch.Tensor, LayerCall]:
    rest = dict(keywords)
    hidden, *others = inputs if inputs else (rest.pop("hidden_states"),)
    return hidden, LayerCall(tuple(others), rest)


def _give(extras: int | None, given: torch.Tensor | None, *inputs: Any, **keywords: Any) -> Any:
    hidden = _taken_apart(inputs, keywords)[0] if given is None else given
    return hidden if extras is None else (hidden, *[None] * extras)


@dataclass(frozen=True)
class Block:
    """A part of a layer that ends with one of its projections: what it gives is what that gives, and ``extras`` things
    that nobody reads (None: it gives no tuple).
    """

    module: nn.Module
    extras: int | None

    @classmethod
    def found(cls, part: nn.Module, leaf: nn.Module, run: Callable[[], torch.Tensor]) -> Block | None:
        """The part of a layer that a projection, the leaf, lies in, if what it gives can stand for it.

        That is proven by a run of the layer in which the part gives what the projection does, and by another one in
        which the part is not run: the layer gives the same in both, bit for bit.
        """
        given: list[Any] = []
        handles = [each.register_forward_hook(lambda _, __, output: given.append(output)) for each in (leaf, part)]
        try:
            plain = run()
        finally:
            for handle in handles:
                handle.remove()
        if part is leaf or len(given) != 2:
            return None
        (output, whole), extras = given, len(given[1]) - 1 if isinstance(given[1], tuple) else None
        first = whole if extras is None else whole[0]
        if not isinstance(first, torch.Tensor) or not torch.equal(first, output):
            return None
        made = cls(part, extras)
        with made.giving(output):
            return made if torch.equal(run(), plain) else None

    @contextmanager
    def giving(self, output: torch.Tensor) -> Iterator[None]:
        """Inside the block it is not run, and gives this."""
        was = self.module.__dict__.get("forward")
        self.module.__dict__["forward"] = partial(_give, self.extras, output)
        try:
            yield
        finally:
            self.module.__dict__.pop("forward", None)
            if was is not None:
                self.module.__dict__["forward"] = was


def _layer_list(model: PreTrainedModel | PeftModel, modules: Sequence[str]) -> str | None:
    """The plain name of the one list of layers that all these modules lie in."""
    base, parts = base_model(model), modules[0].split(".")
    for n in range(1, len(parts)):
        path = ".".join(parts[:n])
        if isinstance(module_at(base, path), nn.ModuleList):
            return path if all(module.startswith(f"{path}.") for module in modules) else None
    return None
