"""Two streams through one model: dense, and under the masks; what a projection reads and gives in both of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from passes.compensation import replaced
from passes.errors import UnsupportedModelError
from passes.masks import MaskedModel
from passes.models import base_model, module_at, parameter_at

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]
"""The keyword arguments of one forward pass."""


@dataclass
class Sides:
    """The model as it is under its masks, and as it is dense: masks and adapter off, ``originals`` put back."""

    model: PreTrainedModel | PeftModel
    hooks: MaskedModel
    originals: dict[str, torch.Tensor]

    @contextmanager
    def dense(self) -> Iterator[None]:
        """The dense model, inside the block."""
        with ExitStack() as stack:
            stack.enter_context(self.hooks.off())
            stack.enter_context(replaced(self.model, self.originals))
            if isinstance(self.model, PeftModel):
                stack.enter_context(self.model.disable_adapter())
            yield

    def undo(self) -> None:
        """Give the model its original weights back for good."""
        for name, tensor in self.originals.items():
            parameter_at(self.model, name).data = tensor
        self.originals.clear()


@dataclass(frozen=True)
class Rows:
    """Of one batch, padding left out: what a projection reads under the masks [n, in], gives [n, out], and gives in the
    dense model [n, out].
    """

    inputs: torch.Tensor
    pruned: torch.Tensor
    dense: torch.Tensor

    def of(self, real: torch.Tensor | None) -> Rows:
        """Only the rows that are real [rows] bool; None: all."""
        return self if real is None else Rows(self.inputs[real], self.pruned[real], self.dense[real])


class Streams(Protocol):
    """Calibration batches on their way through both sides."""

    def rows(self, module: str) -> Iterator[Rows]:
        """What a projection sees, a batch at a time. Modules are asked for in the order in which they run."""
        ...


class _Reached(Exception):  # noqa: N818 - it ends a forward pass early, nothing is wrong
    pass


def captured(module: nn.Module, run: Callable[[], object]) -> tuple[torch.Tensor, torch.Tensor]:
    """Run until ``module`` has run; what it read and what it gave, [rows, ...] flattened to two axes."""
    found: list[torch.Tensor] = []

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found.extend(tensor.detach().flatten(0, -2) for tensor in (inputs[0], output))
        raise _Reached

    handle = module.register_forward_hook(hook)
    try:
        run()
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0], found[1]


def real_rows(model: PreTrainedModel | PeftModel, batch: Batch, module: str) -> torch.Tensor | None:
    """Which rows that a module reads are no padding, [rows] bool; None if all are."""
    base = base_model(model)
    mask = batch.get("attention_mask")
    if base.config.is_encoder_decoder and not _in_encoder(base, module):
        mask = batch.get("decoder_attention_mask")
        if mask is None and "labels" in batch:
            mask = batch["labels"] != -100
    return mask.bool().flatten() if mask is not None and mask.dim() == 2 else None


def _in_encoder(base: PreTrainedModel, module: str) -> bool:
    encoder: Any = base.get_encoder()
    return any(parent is encoder for parent in _parents(base, module))


def _parents(base: PreTrainedModel, module: str) -> Iterator[nn.Module]:
    parts = module.split(".")
    return (module_at(base, ".".join(parts[:n])) for n in range(1, len(parts)))


class WholeModel:
    """Runs the whole model up to the projection for each one: right for any structure, O(layers²) in time."""

    def __init__(self, sides: Sides, batches: Sequence[Batch]) -> None:
        self._sides, self._batches = sides, batches

    def rows(self, module: str) -> Iterator[Rows]:
        """See Streams."""
        site = module_at(self._sides.model, module)
        for batch in self._batches:
            with self._sides.dense():
                _, dense = captured(site, partial(self._sides.model, **batch))
            inputs, pruned = captured(site, partial(self._sides.model, **batch))
            yield Rows(inputs, pruned, dense).of(real_rows(self._sides.model, batch, module))


@dataclass(frozen=True)
class Call:
    """How a layer is called: its arguments after the hidden states."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]

    def __call__(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Run a layer on hidden states; the new hidden states."""
        output = layer(hidden, *self.arguments, **self.keywords)
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result


@dataclass
class _State:
    """One batch: the dense hidden states after the present layer, with what its projections gave there; the pruned ones
    before it; and each layer's call.
    """

    batch: Batch
    dense: torch.Tensor
    pruned: torch.Tensor
    calls: list[Call]
    targets: dict[str, torch.Tensor] = field(default_factory=dict)


class LayerByLayer:
    """Keeps the hidden states of both sides and takes them through one layer at a time: O(layers) in time.

    Memory: hidden states of all batches, twice, and as much for each projection of one layer.
    """

    def __init__(self, sides: Sides, batches: Sequence[Batch], path: str, modules: Sequence[str]) -> None:
        self._sides, self._path, self._modules = sides, path, modules
        count = 1 + max(_index(path, module) for module in modules)
        stack: Any = module_at(sides.model, path)
        self._layers: list[nn.Module] = list(stack)[:count]
        self._at = -1
        self._states = [self._enter(batch)[0] for batch in batches]

    @classmethod
    def try_on(cls, sides: Sides, batches: Sequence[Batch], modules: Sequence[str]) -> LayerByLayer | None:
        """The streams, if all the modules lie in one plain list of layers, each fed with what the last one gave.

        That is proven on the first batch: each layer, run by itself, gives bit for bit what the next one read.
        """
        path = _layer_list(sides.model, modules)
        if path is None:
            return None
        streams = cls(sides, (), path, modules)
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
        return cls(sides, batches, path, modules)

    def rows(self, module: str) -> Iterator[Rows]:
        """See Streams."""
        self._advance(_index(self._path, module))
        site, layer = module_at(self._sides.model, module), self._layers[self._at]
        for state in self._states:
            inputs, pruned = captured(site, partial(state.calls[self._at], layer, state.pruned))
            real = real_rows(self._sides.model, state.batch, module)
            yield Rows(inputs, pruned, state.targets[module]).of(real)

    def _advance(self, index: int) -> None:
        """Take the pruned side up to a layer, through what is compensated by now, and the dense one through it."""
        while self._at < index:
            for state in self._states:
                if self._at >= 0:
                    state.pruned = state.calls[self._at](self._layers[self._at], state.pruned)
                    state.calls[self._at] = Call((), {})  # nothing more to hold on to
                self._target(state, self._at + 1)
            self._at += 1

    def _target(self, state: _State, at: int) -> None:
        """Run a layer on the dense side, and hold what its projections give."""
        sites = [module for module in self._modules if _index(self._path, module) == at]

        def keep(module: str) -> RemovableHandle:
            def hook(_: nn.Module, inputs: object, output: torch.Tensor) -> None:
                state.targets[module] = output.flatten(0, -2)

            return module_at(self._sides.model, module).register_forward_hook(hook)

        state.targets.clear()
        handles = [keep(module) for module in sites]
        try:
            with self._sides.dense():
                state.dense = state.calls[at](self._layers[at], state.dense)
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, batch: Batch) -> tuple[_State, list[torch.Tensor]]:
        """One dense pass: the hidden states before the first layer, each layer's call, and what each layer read."""
        calls: list[Call] = []
        read: list[torch.Tensor] = []

        def hook(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            rest = dict(keywords)
            hidden, *others = inputs if inputs else (rest.pop("hidden_states"),)
            if layer is not self._layers[len(calls)]:
                raise UnsupportedModelError("the layers run in another order than they are listed in")
            calls.append(Call(tuple(others), rest))
            read.append(hidden)
            if len(calls) == len(self._layers):
                raise _Reached

        handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in self._layers]
        try:
            with self._sides.dense():
                self._sides.model(**batch)
        except _Reached:
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


def streams_through(sides: Sides, batches: Sequence[Batch], modules: Sequence[str]) -> Streams:
    """Layer by layer where the structure allows it, else the whole model for each projection."""
    found = LayerByLayer.try_on(sides, batches, modules)
    if found is None:
        logger.info("the model is no plain list of layers: each projection is calibrated by whole forward passes")
    return found or WholeModel(sides, batches)
