"""Blockwise: two models compared a block at a time, on the same inputs, in arithmetic that hides nothing.

Both run their own forward pass on the probe. The layers of the second get what those of the first got, whatever came
before, so that no rounding of one layer is carried to the next. While a layer runs, and only then, its weights are in
fp64: what is left of rounding are the fp32 steps that classes write into their norms, softmaxes and routers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from passes.errors import PostconditionError
from passes.graph import Kind
from passes.models import (
    OUTPUTS,
    WIDE,
    Parity,
    Probe,
    evaluation_mode,
    plain_arithmetic,
    relative_difference,
    rounding_tolerance,
    takes,
    vendor,
    wide,
    widened,
)
from passes.shrink.gathered import Gathered, layers_of

ALLOWED = 64 * torch.finfo(torch.float32).eps
"""How far a token's change by a layer may be off, relative to its largest entry: some fp32 roundings, of any dtype."""

Enter = Callable[[str, torch.Tensor], torch.Tensor]
"""Told a place and the hidden states that come there; returns those to go on with."""

Leave = Callable[[str, torch.Tensor], None]
"""Told a layer and the hidden states that it returns."""

HEAD = "the head's input"


@dataclass(frozen=True)
class Course:
    """What a forward pass hands from place to place: what layers got and gave, what the head got, and the outputs."""

    entered: dict[str, torch.Tensor] = field(default_factory=dict)
    left: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)


@torch.no_grad()
def course_of(model: PreTrainedModel, probe: Probe) -> Course:
    """The course of a model's forward pass."""
    course = Course()

    def enter(place: str, hidden: torch.Tensor) -> torch.Tensor:
        course.entered[place] = hidden
        return hidden

    course.outputs.update(_Run(model, enter, course.left.__setitem__)(probe, layers_of(model)))
    return course


@torch.no_grad()
def compare_blocks(gathered: Gathered, dense: Course, probe: Probe) -> Parity:
    """The worst difference of a layer of the compact model from the dense one's, both given the same hidden states.

    ``dense`` is the course of the dense model under its masks. Raises PostconditionError naming layer and number.
    """
    comparison = _Comparison(gathered, dense)
    names = {id(tensor): gathered.tensors[name] for name, tensor in gathered.compact.named_parameters()}

    def exact(tensor: torch.Tensor) -> torch.Tensor:
        """A rescaled tensor was rounded once more than the dense model's: here it is not."""
        name = names.get(id(tensor))
        return gathered.unrounded(name) if name in gathered.rescaled else wide(tensor)

    run = _Run(gathered.compact, comparison.enter, comparison.leave, exact)
    outputs = run(probe, gathered.layers)
    return comparison.finish(outputs)


class _Comparison:
    def __init__(self, gathered: Gathered, dense: Course) -> None:
        self._gathered, self._dense = gathered, dense
        self._worst = 0.0
        self._visited: set[str] = set()
        self._first = True

    def enter(self, place: str, hidden: torch.Tensor) -> torch.Tensor:
        """What comes to a layer, or to the head, is what came to it in the dense model; the layer goes on with that."""
        head = place == HEAD
        expected = self._left_of(self._dense.entered[place if head else self._gathered.layers[place]])
        allowed = self._embedding_tolerance() if self._first else ALLOWED
        self._first = False
        actual = hidden * self._head_factor() if head else hidden
        self._check(f"what comes to {place}" if not head else place, per_token(actual, expected, expected), allowed)
        return hidden if head else expected

    def leave(self, place: str, hidden: torch.Tensor) -> None:
        """A layer changes its hidden states as the dense one does."""
        dense = self._gathered.layers[place]
        before, after = (self._left_of(each[dense]) for each in (self._dense.entered, self._dense.left))
        change = after - before if after.shape == before.shape else after
        self._visited.add(place)
        self._check(place, per_token(hidden, after, change), ALLOWED)

    def finish(self, outputs: Mapping[str, torch.Tensor]) -> Parity:
        """What lies behind the last layer, and whether all layers ran."""
        missed = [
            now for now, was in self._gathered.layers.items() if was in self._dense.left and now not in self._visited
        ]
        if missed or outputs.keys() != self._dense.outputs.keys():
            raise PostconditionError(f"pass 'shrink' failed its verification: {[*missed, *outputs][0]} did not run")
        for name, value in outputs.items():
            behind_head = self._gathered.compact.get_output_embeddings() is not None
            allowed = rounding_tolerance(self._gathered.compact.dtype) if behind_head else ALLOWED
            self._check(name, relative_difference(value, self._dense.outputs[name]), allowed, counts=not behind_head)
        return Parity("shrink", self._worst, ALLOWED)

    def _check(self, place: str, difference: float, allowed: float, *, counts: bool = True) -> None:
        if not difference <= allowed:
            raise PostconditionError(
                f"pass 'shrink' changed what the model computes: {place} differs from the masked model's by "
                f"{difference:.2e} on the same inputs, {allowed:.0e} is rounding"
            )
        self._worst = max(self._worst, difference) if counts and allowed == ALLOWED else self._worst

    def _left_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden channels that the plan keeps."""
        for dimension in self._gathered.graph.of_kind(Kind.HIDDEN):
            if hidden.shape[-1] == dimension.size:
                return hidden[..., list(self._gathered.kept[dimension.name])]
        return hidden

    def _embedding_tolerance(self) -> float:
        """Embeddings are looked up in their own dtype; one that was rescaled was rounded."""
        if self._gathered.rescaled_embedding is None:
            return ALLOWED
        return max(ALLOWED, 4 * torch.finfo(self._gathered.compact.dtype).eps)

    def _head_factor(self) -> float:
        """What a head that is tied to a rescaled embedding multiplies its input by."""
        head = self._gathered.dense.get_output_embeddings()
        first = next((n for n, p in self._gathered.dense.named_parameters() if p is head.weight), "")
        rescale = self._gathered.rescaled.get(first)
        return 1.0 if rescale is None else rescale.factor


def per_token(actual: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> float:
    """The largest difference of a token's entries over the largest entry of ``scale`` there; the worst token's.

    Tokens [..., channels] of which ``expected`` is not finite (padding of which nothing is attended) are passed over,
    unless all are.
    """
    if actual.shape != expected.shape or actual.dim() == 0:
        return math.inf
    finite = expected.isfinite().all(-1)
    if not finite.any():
        return math.inf
    floor = expected.abs().amax(-1) * torch.finfo(torch.float32).eps + torch.finfo(torch.float32).tiny
    ratio = ((actual - expected).abs().amax(-1) / (scale.abs().amax(-1) + floor))[finite]
    return math.nan if ratio.isnan().any() else float(ratio.max())


class _Run:
    """One forward pass in which layers, and what else has parameters but embeddings, compute in ``WIDE``."""

    def __init__(
        self,
        model: PreTrainedModel,
        enter: Enter,
        leave: Leave,
        value: Callable[[torch.Tensor], torch.Tensor] = wide,
    ) -> None:
        self._model, self._enter, self._leave, self._value = model, enter, leave, value
        self._open: dict[nn.Module, ExitStack] = {}

    def __call__(self, probe: Probe, layers: Collection[str]) -> dict[str, torch.Tensor]:
        """The outputs, where the probe's tokens are real."""
        parameter = next(p for p in self._model.parameters() if p.is_floating_point())
        inputs: dict[str, Any] = dict(probe.on(parameter.device, parameter.dtype))
        if takes(self._model, "use_cache"):
            inputs["use_cache"] = False
        with ExitStack() as stack, plain_arithmetic(), evaluation_mode(self._model), _any_dtype(self._model):
            stack.callback(self._end_all)
            for handle in self._hooks(layers):
                stack.callback(handle.remove)
            output = self._model(**inputs, return_dict=True)
        names = [name for name in OUTPUTS if output.get(name) is not None] or ["last_hidden_state"]
        real = probe.real
        return {name: output[name] if real is None else output[name][real.to(parameter.device)] for name in names}

    def _hooks(self, layers: Collection[str]) -> Iterator[Any]:
        head = self._model.get_output_embeddings()
        for path, module in self._model.named_modules():
            if path in layers:
                yield module.register_forward_pre_hook(self._begin_layer(path), with_kwargs=True)
                yield module.register_forward_hook(self._end_layer(path))
            elif module is head:
                yield module.register_forward_pre_hook(self._begin_head)
            elif _is_outside(path, layers) and not isinstance(module, nn.Embedding) and self._own(module):
                yield module.register_forward_pre_hook(self._begin, with_kwargs=True)
                yield module.register_forward_hook(lambda module, _, __: self._end(module))

    def _begin_layer(self, path: str) -> Any:
        def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            self._widen(module, [*module.parameters(), *module.buffers()])
            args, kwargs = _wide_values(args), _wide_values(kwargs)
            if args:
                return (self._enter(path, args[0]), *args[1:]), kwargs
            first = next(iter(inspect.signature(module.forward).parameters))
            return args, {**kwargs, first: self._enter(path, kwargs[first])}

        return begin

    def _end_layer(self, path: str) -> Any:
        def end(module: nn.Module, _: Any, output: Any) -> None:
            self._end(module)
            self._leave(path, output[0] if isinstance(output, tuple) else output)

        return end

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        self._widen(module, self._own(module))
        return _wide_values(args), _wide_values(kwargs)

    def _begin_head(self, module: nn.Module, args: Any) -> Any:
        """The head's own arithmetic is that of equal tensors on equal inputs: it is not widened."""
        return (self._enter(HEAD, args[0]).to(module.get_parameter("weight").dtype), *args[1:])

    def _own(self, module: nn.Module) -> list[torch.Tensor]:
        """The parameters of a module itself, but those that the head has as well."""
        head = self._model.get_output_embeddings()
        not_these = {id(parameter) for parameter in head.parameters()} if head is not None else set()
        return [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in not_these]

    def _widen(self, module: nn.Module, tensors: list[torch.Tensor]) -> None:
        self._open[module] = ExitStack()
        self._open[module].enter_context(widened(tensors, self._value))

    def _end_all(self) -> None:
        for module in [*self._open]:
            self._end(module)

    def _end(self, module: nn.Module) -> None:
        self._open.pop(module).close()


@contextmanager
def _any_dtype(model: PreTrainedModel) -> Iterator[None]:
    """Attention and experts in implementations that compute in every dtype."""
    attention, experts = vendor.attention_of(model.config), vendor.experts_of(model.config)
    with ExitStack() as stack:
        if attention not in ("eager", "sdpa", None):
            stack.callback(model.set_attn_implementation, attention)
            model.set_attn_implementation("eager")
        if experts not in ("eager", None):
            stack.callback(model.set_experts_implementation, experts)
            model.set_experts_implementation("eager")
        yield


def _is_outside(path: str, layers: Collection[str]) -> bool:
    parts = path.split(".")
    return not any(".".join(parts[:end]) in layers for end in range(1, len(parts)))


def _wide_values(value: Any) -> Any:
    """The floating-point tensors in a nest of tuples, lists and dictionaries in ``WIDE``."""
    if isinstance(value, torch.Tensor):
        return value.to(WIDE) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_wide_values(each) for each in value)
    return {key: _wide_values(each) for key, each in value.items()} if type(value) is dict else value
