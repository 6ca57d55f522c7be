"""Merge: BA into W0, rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers import PreTrainedModel

from passes.errors import ModelError, PostconditionError, PreconditionError
from passes.models import (
    WIDE,
    Adapter,
    Parity,
    active_adapter,
    base_model,
    plain_arithmetic,
    plain_name,
    stated_scaling,
    stored_factors,
    unchanged,
    wide,
    widened,
)
from passes.pipeline import Pass, PassResult, Program, RunContext


@dataclass(frozen=True)
class MergePass(Pass):
    """Adds s·BA to W0 and takes the adapter off.

    Each sum is made in fp64 and rounded once to the weight's dtype, so it is the same on every device; and it is
    checked, element by element, against A, B and s before the old weight is let go of. No other tensor changes.
    """

    name = "merge"

    def requires(self, program: Program) -> None:
        """The program must be traced."""
        if program.graph is None:
            raise PreconditionError("pass 'merge' needs a traced program: run TracePass first")

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Merge, if there is an adapter."""
        if not isinstance(program.model, PeftModel):
            return PassResult(program, modified=False)
        adapter = Adapter.of(program.model)
        merged, parity = merge(program.model)
        done = program.compensation and program.compensation.without_originals()
        program = replace(program, model=merged, adapter=adapter, compensation=done)
        return PassResult(program.expecting_itself(), modified=True, parity=(parity,))

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """Nothing of the adapter is left."""
        check_unwrapped(after.model)
        return ()


@torch.no_grad()
def merge(model: PeftModel) -> tuple[PreTrainedModel, Parity]:
    """The model with its active adapter in its weights, a projection at a time, and how far the worst element is off.

    Raises ModelError if a sum is not finite, PostconditionError if one is not W0 + s·BA, if a weight was left out, or
    if another tensor changed.
    """
    adapter, layers = active_adapter(model), adapted_layers(model)
    parameters = [wrapped(layer) for layer in layers.values()]
    worst = 0.0
    with plain_arithmetic(), unchanged("merge", lambda: _others(model, layers)):
        for name, layer in layers.items():
            before = wrapped(layer).data
            _merge_layer(name, layer, adapter)
            worst = max(worst, check_sum(name, layer, adapter, before))
    merged = cast(PreTrainedModel, model.unload())
    epsilon = max(torch.finfo(parameter.dtype).eps for parameter in parameters)
    return merged.requires_grad_(False), Parity("merge", worst, epsilon / 2)


def wrapped(layer: LoraLayer) -> nn.Parameter:
    """The parameter that a layer's adapter is added to."""
    return cast(nn.Parameter, layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight)


@torch.no_grad()
def merge_into(weight: torch.Tensor, name: str, layer: LoraLayer, adapter: str) -> tuple[torch.Tensor, float]:
    """One weight with a layer's adapter in it, checked, and how far its worst element is off.

    The layer's own weight may be on the meta device, and is afterwards. Raises what ``merge`` raises.
    """
    holder, leaf, own = layer.get_base_layer(), name.rpartition(".")[2], wrapped(layer)
    setattr(holder, leaf, nn.Parameter(weight, requires_grad=False))
    try:
        with plain_arithmetic():
            _merge_layer(name, layer, adapter)
            return wrapped(layer).data, check_sum(name, layer, adapter, weight)
    finally:
        setattr(holder, leaf, own)
        layer.merged_adapters.clear()


def adapted_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """Every layer that wears the active adapter, by the plain name of the parameter that it wraps."""
    adapter, found = active_adapter(model), dict[str, LoraLayer]()
    for path, layer in base_model(model).named_modules():
        if isinstance(layer, LoraLayer) and (adapter in layer.lora_A or adapter in layer.lora_embedding_A):
            leaf = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
            found[f"{plain_name(path)}.{leaf}"] = layer
    return found


def _others(model: PeftModel, layers: dict[str, LoraLayer]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the model that wear no adapter and are not of one."""
    for name, tensor in base_model(model).state_dict(keep_vars=True).items():
        if ".lora_" not in name and plain_name(name) not in layers:
            yield plain_name(name), tensor


def _merge_layer(name: str, layer: LoraLayer, adapter: str) -> None:
    """Let peft add the adapter in fp64, and round the sum once."""
    weight = wrapped(layer)
    own = [tensor for key, tensor in layer.named_parameters() if "lora_" in key.split(".")[0]]
    with widened([weight, *own]):
        layer.merge(safe_merge=False, adapter_names=[adapter])
        summed = weight.data
    rounded = summed.to(weight.dtype)
    if not rounded.isfinite().all():
        raise ModelError(
            f"merging the adapter into {name} gives weights that are not finite in {weight.dtype}: train with a lower "
            "learning rate, or load the model in a wider dtype"
        )
    weight.data = rounded


def check_sum(name: str, layer: LoraLayer, adapter: str, before: torch.Tensor) -> float:
    """How far the worst element of a merged weight is from W0 + s·BA: at most half a unit in the last place, eps / 2.

    The sum is worked out in fp64 from the adapter's own tensors, alpha and rank, without peft. Raises
    PostconditionError if an element is off by more than rounding it once, naming the weight and the number.
    """
    left, right = (wide(each) for each in _factors(layer, adapter))
    scaling, first = stated_scaling(layer, adapter), wide(before)
    exact = first + scaling * (left @ right).reshape(first.shape)
    merged = wrapped(layer).data
    kind = torch.finfo(merged.dtype)
    # Of the sum itself in fp64: |B||A| is at most the product of the lengths of B's rows and A's columns.
    terms = float(first.abs().max() + abs(scaling) * left.norm(dim=-1).max() * right.norm(dim=-2).max())
    noise = torch.full_like(exact, (left.shape[-1] + 4) * torch.finfo(WIDE).eps * terms)
    if kind.bits < 32:  # torch rounds fp64 to these by way of fp32
        noise = noise + exact.abs() * torch.finfo(torch.float32).eps / 2
    # Half the distance of the dtype's numbers where the sum lies.
    half = torch.ldexp(torch.full_like(exact, kind.eps / 4), exact.abs().clamp_min(kind.tiny).frexp().exponent)
    off = ((merged.to(WIDE) - exact).abs() - noise) / half
    if adapter not in layer.merged_adapters:
        raise PostconditionError(f"pass 'merge' failed its verification: the adapter on {name} was not merged")
    if not off.max() <= 1:
        raise PostconditionError(
            f"pass 'merge' failed its verification: {name} is not W + s·BA rounded once: {int((~(off <= 1)).sum()):,} "
            f"of {merged.numel():,} elements are other numbers, the worst {float(off.max()) / 2:.2g} units in the last "
            f"place of {merged.dtype} off"
        )
    return float(off.max().clamp_min(0)) * kind.eps / 2


def _factors(layer: LoraLayer, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors left and right of BA in the layout of the parameter, stacks of them for a stack of experts."""
    if isinstance(layer, LoraEmbedding):
        return layer.lora_embedding_A[adapter].mT, layer.lora_embedding_B[adapter].mT
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    if a.dim() > 2:  # a convolution, followed by one of size 1
        return b.flatten(1), a.flatten(1)
    return stored_factors(layer, a, b)


def check_unwrapped(model: PreTrainedModel | PeftModel) -> None:
    """Raise PostconditionError if anything of an adapter is left in a merged model."""
    left = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    left += [name for name in model.state_dict() if ".lora_" in name or ".base_layer" in name]
    if isinstance(model, PeftModel) or left:
        raise PostconditionError(f"pass 'merge' left the adapter on {left[0] if left else 'the model'}")
