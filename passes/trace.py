"""Trace: find the dimensions of a model, on a twin without weights.

The twin is the model's own class on the meta device, so an 8B model costs no memory. The inside of attention comes from
``passes.attention``, experts from ``passes.experts``, MLPs and the residual stream from torch-pruning. Every parameter
of a layer must be accounted for, otherwise the model is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from passes.attention import AttentionBlock, unit_kind
from passes.dependencies import Dependencies, Member, Opaque, outputs_of
from passes.errors import UnsupportedModelError
from passes.experts import ExpertsBlock
from passes.families import Family, family_of
from passes.graph import Dimension, Kind, PruningGraph, Role, Slice
from passes.infra import Pass, PassResult
from passes.models import base_model, plain_name
from passes.probe import Probe
from passes.program import Program
from passes.stock import twin_of
from passes.tasks import Task, model_class, task_of
from passes.widths import HeadShape, find_widths

LAYER = re.compile(r"(.*?\.\d+)\.")
UNTRACEABLE_INPUTS = ("attention_mask", "decoder_attention_mask", "position_ids")
"""transformers inspects their values, which meta tensors do not have."""


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """Which dimensions to look for.

    ``query_heads``: keep every KV head and prune the query heads inside its group, as many in each. ``custom_code``:
    also allow sizes that no stock class can hold; the checkpoint then carries a modelling file.
    """

    query_heads: bool = False
    custom_code: bool = False


@dataclass(frozen=True)
class TracePass(Pass):
    """Finds the program's pruning graph. Leaves the model as it is."""

    trace_options: TraceOptions = TraceOptions()
    name = "trace"

    def call(self, program: Program) -> PassResult:
        """Trace the twin of the program's model and check that it has the model's own parameters."""
        model = base_model(program.model)
        dtype = next(model.parameters()).dtype
        graph = trace(model.config, dtype, model_type=type(model), options=self.trace_options)
        adapted = isinstance(program.model, PeftModel)
        shapes = {
            plain_name(name): tuple(parameter.shape)
            for name, parameter in model.named_parameters()
            if not (adapted and ".lora_" in name)
        }
        odd = sorted(name for name in {*graph.shapes, *shapes} if shapes.get(name) != graph.shapes.get(name))
        if odd:
            raise UnsupportedModelError(
                f"this {type(model).__name__} is not what its configuration says: {odd[0]} "
                f"has shape {shapes.get(odd[0])}, expected {graph.shapes.get(odd[0])}"
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
    if getattr(config, "compact", None) is not None:
        raise UnsupportedModelError(
            "the model is already compact, with sizes of its own; prune the source it came from"
        )
    twin = twin_of(model_type, config)
    shapes = {name: tuple(parameter.shape) for name, parameter in twin.named_parameters()}
    matmuls = _matmuls(twin)
    attention = list(_attention_blocks(twin, family))
    experts = list(_expert_blocks(twin, family))
    finder = _Finder(family, task_of(model_type), attention, options)
    dimensions = [*finder.attention_dimensions(), *(d for block in experts for d in block.dimensions())]
    known = {name for each in attention for name in each.shapes} | {name for each in experts for name in each.shapes}
    for block in attention:
        twin.set_submodule(block.path, Opaque(twin.get_submodule(block.path), config.hidden_size))
        if block.output_outside is not None:  # its inputs, all heads' values, need not be as many as hidden states
            outside = twin.get_submodule(block.output_outside)
            twin.set_submodule(block.output_outside, Opaque(outside, config.hidden_size, run=False))
    for mixture in experts:
        twin.set_submodule(mixture.path, Opaque(twin.get_submodule(mixture.path), config.hidden_size, run=False))
    probe = Probe.of(twin).inputs
    inputs = {name: value[:1].to("meta") for name, value in probe.items() if name not in UNTRACEABLE_INPUTS}
    layers = {_layer_path(block.path) for block in attention}
    found, residual = finder.channel_dimensions(Dependencies(twin, inputs), layers)
    dimensions += found
    known |= {part.parameter for dimension in dimensions for part in dimension.slices}
    known |= {f"{member.name}.{name}" for member in residual for name, _ in member.module.named_parameters()}
    _check_known(shapes, known, layers)
    routers = [part.parameter for dimension in dimensions for part in dimension.of_role(Role.ROUTE)]
    ordered = tuple(sorted(dimensions, key=lambda d: (d.layer, d.kind)))
    graph = PruningGraph(
        family=config.model_type,
        dtype=dtype or getattr(config, "dtype", None) or torch.float32,
        shapes=shapes,
        matmuls=tuple(dict.fromkeys((*matmuls, *routers))),
        dimensions=ordered,
        widths=(),
        untouched=finder.untouched(),
        fixed_cache_elements=finder.fixed_cache_elements(),
        experts_per_token=int(getattr(config, "num_experts_per_tok", 1) or 1),
    )
    return find_widths(graph, family, config, model_type, finder.head_shapes(), custom_code=options.custom_code)


def _matmuls(twin: nn.Module) -> tuple[str, ...]:
    """The weights that multiply activations: those of linear layers and stacks of experts; routers are to be added."""
    names = {id(parameter): name for name, parameter in twin.named_parameters()}
    linears = [m.get_parameter("weight") for m in twin.modules() if isinstance(m, nn.Linear | Conv1D)]
    stacks = [parameter for parameter in twin.parameters() if parameter.dim() == 3 and parameter.shape[0] > 1]
    return tuple(dict.fromkeys(names[id(weight)] for weight in (*linears, *stacks)))


def _layer_path(path: str) -> str:
    found = LAYER.match(f"{path}.")
    return found[1] if found else path


def _attention_blocks(twin: nn.Module, family: Family) -> Iterator[AttentionBlock]:
    for path, _ in twin.named_modules():
        for layout in family.attentions:
            if layout.matches(path):
                yield layout.read(twin, path)


def _expert_blocks(twin: nn.Module, family: Family) -> Iterator[ExpertsBlock]:
    if family.experts is not None:
        for path, module in twin.named_modules():
            if isinstance(getattr(module, "experts", None), nn.Module):
                yield ExpertsBlock.read(twin, path)


@dataclass(frozen=True)
class _Finder:
    family: Family
    task: Task
    attention: Sequence[AttentionBlock]
    options: TraceOptions

    def stack(self, path: str) -> str:
        """``encoder`` or ``decoder`` in an encoder-decoder, else nothing."""
        if self.task is not Task.SEQ2SEQ_LM:
            return ""
        return "decoder" if "decoder" in path.split(".") else "encoder"

    def layer(self, path: str) -> int:
        """The number of the layer that a path is in."""
        return int(_layer_path(path).rpartition(".")[2])

    def prefix(self, path: str) -> str:
        """How the names of a layer's dimensions begin."""
        stack = self.stack(path)
        return f"{stack}.layers.{self.layer(path)}" if stack else f"layers.{self.layer(path)}"

    def caches(self, block: AttentionBlock) -> bool:
        """Whether the block's keys and values are cached, a target token each."""
        decoder = self.task is Task.CAUSAL_LM or self.stack(block.path) == "decoder"
        return decoder and not block.layout.cross

    def attention_dimensions(self) -> list[Dimension]:
        """KV groups or query heads of every block; those of blocks that share a bias table are one dimension."""
        joined: dict[str, list[Dimension]] = {}
        for block in self.attention:
            for dimension in self._of_block(block):
                joined.setdefault(dimension.name, []).append(dimension)
        return [
            replace(
                same[0],
                slices=tuple(part for each in same for part in each.slices),
                cache_elements=sum(each.cache_elements for each in same),
            )
            for same in joined.values()
        ]

    def width_of(self, block: AttentionBlock) -> str:
        """The width that the block's heads belong to."""
        kind = unit_kind(block, query_heads=self.options.query_heads)
        return block.layout.width.format(kind=kind, stack=self.stack(block.path))

    def head_shapes(self) -> dict[str, HeadShape]:
        """How heads lie, a width. Raises UnsupportedModelError where the blocks of one width differ."""
        found: dict[str, HeadShape] = {}
        for block in self.attention:
            shape = HeadShape(block.per_group, block.groups, block.head_dim)
            if found.setdefault(self.width_of(block), shape) != shape:
                raise UnsupportedModelError(
                    f"{block.path} has other heads ({shape}) than the blocks before it; layers that already differ in "
                    "width are not supported yet"
                )
        return found

    def _of_block(self, block: AttentionBlock) -> Iterator[Dimension]:
        kind = unit_kind(block, query_heads=self.options.query_heads)
        label = f"cross_{kind}" if block.layout.cross else str(kind)
        shared = block.layout.bias_table is not None
        prefix, layer = (self.stack(block.path), 0) if shared else (self.prefix(block.path), self.layer(block.path))
        width = self.width_of(block)
        name = f"{prefix}.{label}".lstrip(".")
        a_head = 2 * block.head_dim if self.caches(block) else 0
        if kind is Kind.KV_GROUPS:
            cached = a_head * (block.per_group if block.expands else 1)
            yield Dimension(name, kind, layer, block.groups, block.group_slices(), width, cached)
            return
        for group in range(block.groups):
            lane, cached = name if block.groups == 1 else f"{name}.{group}", a_head if block.expands else 0
            yield Dimension(lane, kind, layer, block.per_group, block.query_slices(group), width, cached)

    def untouched(self) -> dict[str, str]:
        """Why KV heads stay where only their query heads can go."""
        if any(block.groups == 1 and block.heads > 1 for block in self.attention):
            return {str(Kind.KV_GROUPS): "one KV head serves all query heads (multi-query), so only query heads can go"}
        return {str(Kind.KV_GROUPS): "kept, as asked: only query heads go"} if self.options.query_heads else {}

    def fixed_cache_elements(self) -> int:
        """Cached elements a token of the blocks whose KV heads all stay."""
        inside = [b for b in self.attention if unit_kind(b, query_heads=self.options.query_heads) is Kind.QUERY_HEADS]
        return sum(2 * b.groups * b.head_dim for b in inside if self.caches(b) and not b.expands)

    def channel_dimensions(self, dependencies: Dependencies, layers: set[str]) -> tuple[list[Dimension], list[Member]]:
        """The MLP channels between the linear layers of each layer, and the members of the residual stream."""
        found, residual, claimed = [], list[Member](), set[str]()
        for name, module in dependencies.twin.named_modules():
            inside = _layer_path(name) in layers and isinstance(module, nn.Linear | Conv1D | Opaque)
            if not inside or name in claimed or not dependencies.is_traced(module):
                continue
            members = list(dependencies.members(module, (0,)))
            claimed |= {member.name for member in members if member.produces}
            leaves = any(_layer_path(member.name) != _layer_path(name) for member in members)
            if leaves or isinstance(module, Opaque):
                residual += members
            else:
                last = list(dependencies.members(module, (_units(members, name, module) - 1,)))
                found.append(self._channels(name, members, last))
        return found, residual

    def _channels(self, name: str, members: list[Member], last: list[Member]) -> Dimension:
        size = _units(members, name, members[0].module)
        slices: dict[tuple[str, bool], Slice] = {}
        for member, end in zip(members, last, strict=True):
            expected = tuple(index + size - 1 for index in member.indices)
            if not isinstance(member.module, nn.Linear | Conv1D) or end.indices != expected:
                raise UnsupportedModelError(
                    f"{member.name} ({type(member.module).__name__}) is coupled with the MLP channels of {name} "
                    "in a way that is not understood"
                )
            for part in _linear_slices(member):
                slices.setdefault((part.parameter, member.produces), part)
        kind, stack = Kind.MLP_CHANNELS, self.stack(name)
        width = self.family.channels_width.format(stack=stack)
        return Dimension(f"{self.prefix(name)}.{kind}", kind, self.layer(name), size, tuple(slices.values()), width)


def _units(members: list[Member], name: str, module: nn.Module) -> int:
    """Channels of a dimension: a fused layer of several halves has as many outputs a channel."""
    halves = next(len(member.indices) for member in members if member.name == name)
    return outputs_of(module) // halves


def _linear_slices(member: Member) -> Iterator[Slice]:
    transposed = isinstance(member.module, Conv1D)
    segments = tuple((index, 1) for index in member.indices)
    if member.produces:
        yield Slice(f"{member.name}.weight", int(transposed), segments, Role.PRODUCE)
        if getattr(member.module, "bias", None) is not None:
            yield Slice(f"{member.name}.bias", 0, segments)
    else:
        yield Slice(f"{member.name}.weight", int(not transposed), segments, Role.CONSUME)


def _check_known(shapes: dict[str, tuple[int, ...]], known: set[str], layers: set[str]) -> None:
    unknown = sorted(name for name in set(shapes) - known if _layer_path(name) in layers)
    if unknown:
        raise UnsupportedModelError(
            f"{unknown[0]} with shape {shapes[unknown[0]]} is coupled with nothing that the trace knows"
        )
