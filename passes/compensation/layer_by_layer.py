"""Both streams through one layer at a time, on hidden states that are kept between the layers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from passes.compensation.layer_stack import Block, LayerCall, LayerStack
from passes.compensation.streams import (
    ModelInputs,
    Reached,
    Sides,
    Streams,
    TokenRows,
    WholeModel,
    real_places,
    row_of,
    wide,
)
from passes.models import module_at, relative_difference, rounding_tolerance

logger = logging.getLogger(__name__)


Pair = tuple[torch.Tensor, torch.Tensor]
"""What a projection reads and gives, [rows, ...]."""

NOTHING: Mapping[str, Pair] = MappingProxyType({})


class Added(Enum):
    """What of a projection's output reaches the stream of hidden states, with all later projections silent."""

    NO = "not as it is"
    ALONE = "it is added, to what the layer read and the outputs of the projections before it"
    AMONG = "it is added, to whatever else the layer computes"


@dataclass(frozen=True)
class _Seen:
    """What was seen of a projection: what it reads and gives [rows, ...]; ``place``, which is to be as in the dense
    model: the stream after it where it is added, else its output [rows, outputs]; and the layer's hidden states if it
    was run to its end with all its projections at work, else None.
    """

    inputs: torch.Tensor
    output: torch.Tensor
    place: torch.Tensor
    after: torch.Tensor | None


@dataclass
class _State:
    """One batch: the hidden states of both sides before the present layer, or the dense ones after it once it was
    entered; each layer's call; where its rows are no padding (None: all); what earlier projections of the layer
    read, by name; ``wanted``, the dense ``place`` of each projection; and what was seen of the last one, if the layer
    can be left with that.
    """

    batch: ModelInputs
    dense: torch.Tensor
    pruned: torch.Tensor
    calls: list[LayerCall]
    real: torch.Tensor | None
    read: dict[str, torch.Tensor] = field(default_factory=dict)
    wanted: dict[str, torch.Tensor] = field(default_factory=dict)
    last: _Seen | None = None


class LayerByLayer:
    """Keeps the hidden states of both sides and takes them through one layer at a time: O(layers) in time.

    With ``residual``, what a projection is to give makes good what the residual stream lacks already: the hidden states
    after it, with all later projections silent, are to be the dense model's. That is done where the layer adds the
    projection's output to the stream as it is, which is proven on the first row; elsewhere the target is the dense
    projection's output.

    Each side runs each layer once. The pruned one stops at each of its projections, until that is solved: what a part
    of the layer gave that ends with a projection (``Block``) is not worked out again, but from what the projection
    read; where there is no such part, the layer is run up to the next projection from the start. Where the last
    projection is added, what its new weight changes is added to what the layer gave. Memory: hidden states of all
    batches, twice, as much in fp32 for each projection of one layer, and what these read.
    """

    def __init__(
        self, sides: Sides, stack: LayerStack, batches: Sequence[ModelInputs], modules: Sequence[str], *, residual: bool
    ) -> None:
        self._sides, self._stack, self._modules, self._residual = sides, stack, modules, residual
        self._added: dict[str, Added] = {}
        self._blocks: dict[str, Block] = {}
        self._at = -1
        self._proof = self._enter(row_of(batches[0]))
        self._states = [self._enter(batch) for batch in batches]

    @classmethod
    def try_on(
        cls, sides: Sides, batches: Sequence[ModelInputs], modules: Sequence[str], *, residual: bool
    ) -> LayerByLayer | None:
        """The streams, if the modules lie in one plain list of layers; see ``LayerStack.try_on``."""
        stack = LayerStack.try_on(sides, row_of(batches[0]), modules)
        return cls(sides, stack, batches, modules, residual=residual) if stack is not None else None

    @property
    def residual(self) -> frozenset[str]:
        """The projections so far whose target made good what the residual stream lacked."""
        return frozenset(module for module, added in self._added.items() if added is not Added.NO)

    def rows(self, module: str) -> Iterator[TokenRows]:
        """See Streams."""
        self._advance(self._stack.index(module))
        for state in self._states:
            known = {name: self._again(name, read) for name, read in state.read.items()}
            seen = self._look(self._at, module, state.calls[self._at], state.pruned, known)
            if module in self._blocks:
                state.read[module] = seen.inputs
            elif module == self._sites(self._at)[-1] and self._added[module] is not Added.NO:
                state.last = seen
            rows = TokenRows(seen.inputs, seen.output, state.wanted[module] - seen.place)
            yield rows.of(state.real)

    def outputs(self, batches: Sequence[ModelInputs]) -> Iterator[Mapping[str, Any]]:
        """See Streams. The layers are not run again."""
        for batch, state in zip(batches, self._states, strict=True):
            self._leave(state)
            yield self._stack.outputs(batch, state.pruned)

    def _enter(self, batch: ModelInputs) -> _State:
        with self._sides.dense():
            hidden, calls = self._stack.enter(batch)
        return _State(batch, hidden, hidden, calls, real_places(self._sides.model, batch, self._modules[0]))

    def _again(self, module: str, inputs: torch.Tensor) -> Pair:
        """What a projection gives on what it read, as its weight is now."""
        return inputs, module_at(self._sides.model, module)(inputs)

    def _advance(self, index: int) -> None:
        """Take the pruned side up to a layer, through what is compensated by now, and the dense one through it."""
        while self._at < index:
            for state in self._states if self._at >= 0 else ():
                self._leave(state)
            self._at += 1
            with self._sides.dense():
                self._prove(self._at)
                for state in self._states:
                    self._through_dense(state)

    def _leave(self, state: _State) -> None:
        """The pruned hidden states after the present layer, as its projections are now."""
        seen, state.last = state.last, None
        if seen is not None and seen.after is not None:
            _, new = self._again(self._sites(self._at)[-1], seen.inputs)
            moved = (wide(new) - wide(seen.output)).view_as(seen.after)
            state.pruned = (wide(seen.after) + moved).to(seen.after.dtype)
        else:
            state.pruned = self._call(self._at, state.calls[self._at], state.pruned)
        state.calls[self._at] = LayerCall((), {})  # nothing more to hold on to
        state.read = {}

    def _through_dense(self, state: _State) -> None:
        """The dense hidden states after the present layer, and what its projections are to come to, in one run."""
        sites, call = self._sites(self._at), state.calls[self._at]
        found, after = self._watch(sites, call, state.dense, self._at)
        state.wanted = {}
        for module in sites:
            if self._added[module] is Added.AMONG and module != sites[-1]:
                state.wanted[module] = self._look(self._at, module, call, state.dense).place
            else:
                state.wanted[module] = self._place(module, state.dense, found, after)
        assert after is not None
        state.dense = after

    def _sites(self, at: int) -> list[str]:
        """The projections of a layer, in the order in which they run."""
        return [module for module in self._modules if self._stack.index(module) == at]

    def _call(self, at: int, call: LayerCall, hidden: torch.Tensor) -> torch.Tensor:
        return call(self._stack.layers[at], hidden)

    def _look(
        self, at: int, module: str, call: LayerCall, hidden: torch.Tensor, known: Mapping[str, Pair] | None = None
    ) -> _Seen:
        """Run a layer as far as is needed to see a projection; what is ``known`` of earlier ones is not worked out."""
        sites = self._sites(at)
        until, later = sites[: sites.index(module) + 1], sites[sites.index(module) + 1 :]
        added = self._added[module]
        to_the_end = added is Added.AMONG or (added is Added.ALONE and not later)
        silent = later if added is Added.AMONG else []
        found, after = self._watch(until, call, hidden, at, silent=silent, stop=not to_the_end, known=known or {})
        inputs, output = found[module]
        return _Seen(inputs, output, self._place(module, hidden, found, after), after if not later else None)

    def _place(
        self, module: str, hidden: torch.Tensor, found: Mapping[str, Pair], after: torch.Tensor | None
    ) -> torch.Tensor:
        """What is to be as in the dense model; ``after``: the hidden states with the later projections silent."""
        if self._added[module] is Added.NO:
            return wide(found[module][1])
        if self._added[module] is Added.AMONG:
            assert after is not None
            return wide(after).flatten(0, -2)
        place = wide(hidden).flatten(0, -2)
        for name, (_, output) in found.items():
            place = place + wide(output)
            if name == module:
                break
        return place

    def _watch(
        self,
        sites: Sequence[str],
        call: LayerCall,
        hidden: torch.Tensor,
        at: int,
        *,
        silent: Sequence[str] = (),
        push: torch.Tensor | None = None,
        stop: bool = False,
        known: Mapping[str, Pair] = NOTHING,
    ) -> tuple[dict[str, Pair], torch.Tensor | None]:
        """Run a layer: what these projections read and give, and the hidden states after it; None if it was ended
        with the last of them (``stop``). ``silent`` ones give zero. ``push`` is added to what the last one gives. The
        blocks of what is ``known`` are not run.
        """
        found = dict(known)

        def look(name: str, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            last = name == sites[-1]
            # The layer may go on to write into what the projection gave: Falcon adds its parallel attention to it.
            given = output if last and stop else output.clone()
            found[name] = (inputs[0].flatten(0, -2), given.flatten(0, -2))
            if last and stop:
                raise Reached
            return output + push.view_as(output) if last and push is not None else None

        after = None
        with ExitStack() as stack:
            for name, (_, output) in known.items():
                stack.enter_context(self._blocks[name].giving(output.clone().view(*hidden.shape[:-1], -1)))
            for name in (each for each in sites if each not in known):
                hook = module_at(self._sides.model, name).register_forward_hook(
                    lambda _, inputs, output, name=name: look(name, inputs, output)
                )
                stack.callback(hook.remove)
            for name in silent:
                stack.callback(module_at(self._sides.model, name).register_forward_hook(_silence).remove)
            with suppress(Reached):
                after = self._call(at, call, hidden)
        return found, after

    def _prove(self, at: int) -> None:
        """Find out on one row how each projection's output reaches the stream, and take the row on."""
        sites, state = self._sites(at), self._proof
        call = state.calls[at]
        _, alone = self._watch((), call, state.dense, at, silent=sites)
        bare = alone is not None and torch.equal(alone, state.dense)
        for number, module in enumerate(sites):
            before, later = sites[:number], sites[number + 1 :]
            if not self._residual or not self._is_added(state, at, [*before, module], later):
                self._added[module] = Added.NO
            else:
                bare = bare and all(self._added[name] is Added.ALONE for name in before)
                self._added[module] = Added.ALONE if bare else Added.AMONG
            block = self._block(module, call, state.dense) if later else None
            if block is not None:
                self._blocks[module] = block
        state.dense = self._call(at, call, state.dense)
        state.calls[at] = LayerCall((), {})

    def _block(self, module: str, call: LayerCall, hidden: torch.Tensor) -> Block | None:
        layer, leaf = self._stack.layers[self._stack.index(module)], module_at(self._sides.model, module)
        block = layer.get_submodule(self._stack.name_in_layer(module).partition(".")[0])
        return Block.found(block, leaf, partial(call, layer, hidden))

    def _is_added(self, state: _State, at: int, until: Sequence[str], later: Sequence[str]) -> bool:
        """Whether the layer adds the projection's output to the hidden states as it is: a large push comes through."""
        call = state.calls[at]
        found, plain = self._watch(until, call, state.dense, at, silent=later)
        output = found[until[-1]][1]
        assert plain is not None
        if plain.flatten(0, -2).shape != output.shape:
            return False
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        push = noise.to(output) * plain.abs().max()
        _, pushed = self._watch(until, call, state.dense, at, silent=later, push=push)
        assert pushed is not None
        difference = relative_difference((pushed - plain).flatten(0, -2), push)
        return difference <= rounding_tolerance(push.dtype)


def _silence(_: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(output)


def streams_through(sides: Sides, batches: Sequence[ModelInputs], modules: Sequence[str], *, residual: bool) -> Streams:
    """Layer by layer where the structure allows it, else the whole model for each projection (without ``residual``)."""
    found = LayerByLayer.try_on(sides, batches, modules, residual=residual)
    if found is None:
        logger.info("the model is no plain list of layers: each projection is calibrated by whole forward passes")
    return found or WholeModel(sides, batches)
