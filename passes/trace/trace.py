"""Trace: find the dimensions of a model, on a twin without weights.

The twin is the model's own class on the meta device, so an 8B model costs no memory. The inside of attention comes from
``passes.families.attention``, experts from ``passes.families.experts``, MLPs and the residual stream from
torch-pruning. Every parameter of a layer must be accounted for, otherwise the model is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from passes.errors import LpcError, UnsupportedModelError
from passes.families import (
    AttentionBlock,
    ExpertsBlock,
    Family,
    attention_blocks,
    expert_groups,
    experts_per_token,
    family_of,
    fixed_blocks,
)
from passes.graph import Dimension, Kind, PruningGraph, Role, ends_in, layer_path
from passes.models import (
    Probe,
    Task,
    base_model,
    has_own_sizes,
    model_class,
    plain_name,
    reason,
    task_of,
    twin_of,
    vendor,
)
from passes.options import TraceOptions
from passes.pipeline import Pass, PassResult, Program, RunContext
from passes.trace.dependencies import CoupledModule, Dependencies, Opaque
from passes.trace.depth import DepthFinder, depth_of
from passes.trace.dimensions import DimensionFinder
from passes.trace.hidden import HiddenFinder
from passes.trace.widths import find_widths

UNTRACEABLE_INPUTS = ("attention_mask", "decoder_attention_mask", "position_ids")
"""transformers inspects their values, which meta tensors do not have."""

WHATEVER = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a class may raise that is run without values, or from a configuration that lacks what it reads."""


def options_for(dimensions: Iterable[str], *, custom_code: bool = True) -> TraceOptions:
    """The options under which a model has the dimensions of these names, such as those of a plan."""
    names = list(dimensions)
    return TraceOptions(
        query_heads=any(f".{Kind.QUERY_HEADS}" in name for name in names),
        custom_code=custom_code,
        depth=depth_of(names),
        hidden=str(Kind.HIDDEN) in names,
    )


@dataclass(frozen=True)
class TracePass(Pass):
    """Finds the program's pruning graph. Leaves the model as it is."""

    trace_options: TraceOptions = TraceOptions()
    name = "trace"

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Trace the twin of the program's model and check that it has the model's own parameters."""
        model = base_model(program.model)
        dtype = next(each.dtype for each in model.parameters() if each.is_floating_point())
        graph = trace(model.config, dtype, model_type=type(model), options=self.trace_options)
        adapted = isinstance(program.model, PeftModel)
        shapes = {
            plain_name(name): vendor.shape_of(parameter)
            for name, parameter in model.named_parameters()
            if not (adapted and ".lora_" in name)
        }
        odd = sorted(name for name in {*graph.shapes, *shapes} if shapes.get(name) != graph.shapes.get(name))
        if odd:
            mine, said = shapes.get(odd[0]), graph.shapes.get(odd[0])
            seen = "is not there, or is another one's tensor" if mine is None else f"has shape {mine}"
            raise UnsupportedModelError(
                f"this {type(model).__name__} is not what its configuration says: {odd[0]} {seen}, and is to have "
                f"{said or 'no place'}: hand over a model that its configuration builds"
            )
        return PassResult(replace(program, graph=graph), modified=False)


@torch.enable_grad()  # torch-pruning follows autograd, even if the caller is in no_grad
def trace(
    config: PreTrainedConfig,
    dtype: torch.dtype | None = None,
    *,
    model_type: type[PreTrainedModel] | None = None,
    options: TraceOptions = TraceOptions(),
) -> PruningGraph:
    """The pruning graph of a configuration; allocates no weights.

    ``dtype`` is that of the weights (default: the configuration's, else fp32) and only enters the byte costs.
    ``model_type`` is the model's class (default: the one that the configuration names). Raises UnsupportedModelError
    with the reason when the structure cannot be proven sound to prune.
    """
    family, model_type = family_of(config), model_type or model_class(config)
    _check_dense(config)
    try:
        with vendor.Unvalued():  # type: ignore[no-untyped-call]
            return _traced(family, config, dtype, model_type, options)
    except LpcError:
        raise
    except WHATEVER as error:
        raise UnsupportedModelError(
            f"{model_type.__name__} cannot be followed without values ({type(error).__name__}: {reason(error)}), so "
            "what hangs together in it is not known"
        ) from error


def _traced(
    family: Family,
    config: PreTrainedConfig,
    dtype: torch.dtype | None,
    model_type: type[PreTrainedModel],
    options: TraceOptions,
) -> PruningGraph:
    twin = twin_of(model_type, config).float()  # only shapes are followed, and BLOOM adds no two dtypes
    shapes = {name: tuple(parameter.shape) for name, parameter in twin.named_parameters()}
    matmuls = _matmuls(twin)
    attention, fixed = list(attention_blocks(twin, family)), fixed_blocks(twin, family)
    if family.proof is not None:
        _check_all_found(twin, [block.path for block in attention])
    experts = list(_expert_blocks(twin, family))
    finder = DimensionFinder(family, task_of(model_type), attention, options.query_heads)
    whole = family.experts is not None and expert_groups(config) == 1
    dimensions = [*finder.attention_dimensions(), *(d for e in experts for d in e.dimensions(whole_experts=whole))]
    known = {name for each in attention for name in each.shapes} | {name for each in experts for name in each.shapes}
    known |= {name for name in shapes if any(name.startswith(f"{path}.") for path in fixed)}
    _hide_blocks(twin, attention, experts, fixed, family.outputs)
    inputs = _traceable_inputs(twin)
    layers = {layer_path(path) for path in (*(block.path for block in attention), *fixed)}
    dependencies = Dependencies(twin, inputs)
    found, residual = finder.channel_dimensions(dependencies, layers)
    dimensions += found
    if family.proof is None:  # else the proof was that nothing is missing
        _check_known(shapes, known, dimensions, residual, layers)
    ordered = sorted(dimensions, key=lambda d: (d.layer, d.kind))
    if options.hidden:
        _check_nothing_fixed(fixed, family, "the hidden size has")
        ordered.append(HiddenFinder(config, shapes, attention, experts).dimension(dependencies, residual, ordered))
    graph = _graph_of(config, dtype, shapes, matmuls, ordered, finder)
    graph = find_widths(graph, family, config, model_type, finder.head_shapes(), custom_code=options.custom_code)
    stays = {**graph.untouched, **family.stays, **family.fixed, **_uncounted(finder, layers, twin)}
    if experts and not whole:
        stays.setdefault(str(Kind.EXPERTS), "their router chooses among groups of them (n_group)")
    graph = replace(graph, untouched=stays)
    if options.depth is None:
        return graph
    _check_nothing_fixed(fixed, family, "its layers have")
    fresh = twin_of(model_type, config).float()
    _hide_blocks(fresh, (), experts)
    return DepthFinder(graph, config, model_type, fresh, inputs, finder, experts).found(options.depth)


def _graph_of(
    config: PreTrainedConfig,
    dtype: torch.dtype | None,
    shapes: dict[str, tuple[int, ...]],
    matmuls: Sequence[str],
    dimensions: Sequence[Dimension],
    finder: DimensionFinder,
) -> PruningGraph:
    """The graph of these dimensions, whose widths are still to be found."""
    routers = [part.parameter for dimension in dimensions for part in dimension.of_role(Role.ROUTE)]
    return PruningGraph(
        family=config.model_type,
        dtype=dtype or getattr(config, "dtype", None) or torch.float32,
        shapes=shapes,
        matmuls=tuple(dict.fromkeys((*matmuls, *routers))),
        dimensions=tuple(dimensions),
        widths=(),
        untouched=finder.untouched(),
        fixed_cache_elements=finder.fixed_cache_elements(),
        experts_per_token=experts_per_token(config),
    )


def _check_dense(config: PreTrainedConfig) -> None:
    if has_own_sizes(config):
        raise UnsupportedModelError(
            "the model is already compact, its layers have sizes of their own (per_layer_config or compact in its "
            "configuration); prune the source it came from"
        )


def _traceable_inputs(twin: PreTrainedModel) -> dict[str, torch.Tensor]:
    """One row of the probe, on the meta device."""
    probe = Probe.of(twin).inputs
    return {name: value[:1].to("meta") for name, value in probe.items() if name not in UNTRACEABLE_INPUTS}


def _matmuls(twin: nn.Module) -> tuple[str, ...]:
    """The weights that multiply activations: those of linear layers and stacks of experts; routers are to be added."""
    names = {id(parameter): name for name, parameter in twin.named_parameters()}
    linears = [m.get_parameter("weight") for m in twin.modules() if isinstance(m, nn.Linear | Conv1D)]
    stacks = [parameter for parameter in twin.parameters() if parameter.dim() == 3 and parameter.shape[0] > 1]
    return tuple(dict.fromkeys(names[id(weight)] for weight in (*linears, *stacks)))


def _expert_blocks(twin: nn.Module, family: Family) -> Iterator[ExpertsBlock]:
    if family.experts is not None or family.expert_channels is not None:
        for path, module in twin.named_modules():
            if isinstance(getattr(module, "experts", None), nn.Module) and not family.is_fixed(path):
                yield ExpertsBlock.read(twin, path, alone=family.proof is None)


def _check_all_found(twin: nn.Module, found: Sequence[str]) -> None:
    """Raise UnsupportedModelError if attention of the same class as that found lies where a small model had none."""
    kinds = {type(twin.get_submodule(path)): path for path in found}
    for path, module in twin.named_modules():
        if type(module) in kinds and not any(f"{path}.".startswith(f"{each}.") for each in found):
            raise UnsupportedModelError(
                f"{path} is {type(module).__name__} as {kinds[type(module)]} is, but lies where the small model that "
                "the structure was proven on has none"
            )


def _uncounted(finder: DimensionFinder, layers: set[str], twin: PreTrainedModel) -> dict[str, str]:
    """What the costs leave out: caches of decoder layers of whose attention nothing is known, and what runs again."""
    known = {layer_path(block.path) for block in finder.attention}
    turns = max((module.calls for module in twin.modules() if isinstance(module, Opaque)), default=1)
    found = {}
    if turns > 1:
        found["MACs"] = f"layers run up to {turns} times with the same weights, and are counted once in the costs"
    if finder.task is not Task.CAUSAL_LM:
        return found
    if layers - known:
        unknown = f"what {len(layers - known)} layers keep of past tokens is not known, and not in the costs"
        return {**found, "KV cache": unknown}
    return {**found, "KV cache": "each run of a layer keeps its own, of which the costs hold one"} if found else found


def _check_nothing_fixed(fixed: Sequence[str], family: Family, what: str) -> None:
    """Raise UnsupportedModelError if there are blocks whose inside nobody knows."""
    if fixed:
        why = next(why for name, why in family.fixed.items() if ends_in(fixed[0], name))
        raise UnsupportedModelError(f"{what} to stay, since {fixed[0]} does: {why}")


def _hide_blocks(
    twin: PreTrainedModel,
    attention: Sequence[AttentionBlock],
    experts: Sequence[ExpertsBlock],
    fixed: Sequence[str] = (),
    outputs: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Make the blocks whose inside is described, or not to be looked into, opaque to the trace."""
    for block in attention:
        twin.set_submodule(block.path, Opaque(twin.get_submodule(block.path), block.width))
        if block.output_outside is not None:  # its inputs, all heads' values, need not be as many as hidden states
            outside = twin.get_submodule(block.output_outside)
            twin.set_submodule(block.output_outside, Opaque(outside, block.width, run=False))
    for path in (*fixed, *(mixture.path for mixture in experts)):
        block, hidden = twin.get_submodule(path), twin.config.hidden_size
        twin.set_submodule(path, Opaque(block, hidden, run=False, outputs=outputs.get(type(block).__name__, 0)))


def _check_known(
    shapes: Mapping[str, tuple[int, ...]],
    described: set[str],
    dimensions: Sequence[Dimension],
    residual: Sequence[CoupledModule],
    layers: set[str],
) -> None:
    """Raise UnsupportedModelError if a layer has a parameter that nothing accounts for."""
    known = described | {part.parameter for dimension in dimensions for part in dimension.slices}
    known |= {f"{member.name}.{name}" for member in residual for name, _ in member.module.named_parameters()}
    known |= {name for name, shape in shapes.items() if math.prod(shape) == 1}  # a number belongs to no unit
    unknown = sorted(name for name in set(shapes) - known if layer_path(name) in layers)
    if unknown:
        raise UnsupportedModelError(
            f"{unknown[0]} with shape {shapes[unknown[0]]} is coupled with nothing that the trace knows"
        )
