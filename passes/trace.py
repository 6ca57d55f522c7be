"""Trace: find the dimensions of a model with torch-pruning, on a twin without weights.

The twin is the stock class of the model's configuration on the meta device, so an 8B model costs no memory. In it each
attention block is one opaque node, because torch-pruning cannot see through grouped-query attention
(VainF/Torch-Pruning#527); the inside comes from ``passes.attention``. MLPs and the residual stream are discovered.
Every parameter of the model must be accounted for, otherwise the model is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch_pruning as tp
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from passes.attention import family_of
from passes.errors import UnsupportedModelError
from passes.graph import Dimension, Kind, PruningGraph, Slice
from passes.infra import Pass, PassResult
from passes.models import base_model
from passes.program import Program
from passes.stock import loadable_group_counts

PROBE_TOKENS = 4


class _OpaqueAttention(nn.Module):
    """Stands for an attention block in the trace: hidden states in, hidden states out."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(hidden_size, device="meta"))

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return hidden_states * self.scale, None


class _WidthOnly(tp.BasePruningFunc):  # type: ignore[misc]
    """Tells torch-pruning a node's width; the twin itself is never cut."""

    def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int:
        return int(next(layer.parameters()).shape[0])

    get_in_channels = get_out_channels


class TracePass(Pass):
    """Finds the program's pruning graph. Leaves the model as it is."""

    name = "trace"

    def call(self, program: Program) -> PassResult:
        """Trace the twin of the program's model and check that it has the model's own parameters."""
        model = base_model(program.model)
        graph = trace(model.config, dtype=next(model.parameters()).dtype)
        adapted = isinstance(program.model, PeftModel)
        shapes = {
            name.replace(".base_layer.", "."): tuple(parameter.shape)
            for name, parameter in model.named_parameters()
            if not (adapted and ".lora_" in name)
        }
        odd = sorted(name for name in {*graph.shapes, *shapes} if shapes.get(name) != graph.shapes.get(name))
        if odd:
            raise UnsupportedModelError(
                f"{type(model).__name__} is not like the stock {graph.family} class: {odd[0]} "
                f"has shape {shapes.get(odd[0])}, expected {graph.shapes.get(odd[0])}"
            )
        return PassResult(replace(program, graph=graph), modified=False)


@dataclass(frozen=True)
class _Member:
    """A module of a coupled group: the axis of its weight that is coupled, and the indices asked for."""

    name: str
    module: nn.Module
    axis: int
    indices: tuple[int, ...]


@torch.enable_grad()  # torch-pruning follows autograd, even if the caller is in no_grad
def trace(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> PruningGraph:
    """The pruning graph of a configuration; allocates no weights.

    ``dtype`` is that of the weights (default: the configuration's, else fp32) and only enters the byte costs.
    Raises UnsupportedModelError with the reason when the structure cannot be proven sound to prune.
    """
    family = family_of(config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(config)
    names = {id(parameter): name for name, parameter in twin.named_parameters()}
    shapes = {name: tuple(parameter.shape) for name, parameter in twin.named_parameters()}
    matmuls = tuple(names[id(m.weight)] for m in twin.modules() if isinstance(m, nn.Linear))
    attention = {name: module for name, module in twin.named_modules() if name.split(".")[-1] == family.attention}
    dimensions = [
        family.layout.dimension(block, path, layer, config, head_dim)
        for layer, (path, block) in enumerate(attention.items())
    ]
    known = {f"{path}.{name}" for path, block in attention.items() for name, _ in block.named_parameters()}
    for path in attention:
        twin.set_submodule(path, _OpaqueAttention(config.hidden_size))
    dependencies = _dependencies(twin)
    residual = list(_members(dependencies, twin.get_input_embeddings()))
    dimensions += _mlp_dimensions(dependencies, [path.rpartition(".")[0] for path in attention], residual)
    known |= {part.parameter for dimension in dimensions for part in dimension.slices}
    known |= {f"{member.name}.{name}" for member in residual for name, _ in member.module.named_parameters()}
    _check_known(shapes, known)
    return PruningGraph(
        family=config.model_type,
        layers=len(attention),
        head_dim=head_dim,
        query_heads_per_group=config.num_attention_heads // config.num_key_value_heads,
        dtype=dtype or getattr(config, "dtype", None) or torch.float32,
        shapes=shapes,
        matmuls=matmuls,
        dimensions=tuple(sorted(dimensions, key=lambda d: (d.layer, d.kind))),
        group_counts=loadable_group_counts(config),
    )


def _dependencies(twin: nn.Module) -> tp.DependencyGraph:
    """torch-pruning's dependency graph of the twin, its attention blocks already opaque."""
    norms = {type(m) for m in twin.modules() if [p.dim() for p in m.parameters()] == [1] and not list(m.children())}
    # A ready 4-D mask keeps transformers from inspecting mask values, which meta tensors do not have.
    inputs = {
        "input_ids": torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device="meta"),
        "attention_mask": torch.zeros(1, 1, PROBE_TOKENS, PROBE_TOKENS, device="meta"),
        "use_cache": False,
    }
    return tp.DependencyGraph().build_dependency(
        twin,
        example_inputs=inputs,
        forward_fn=lambda model, kwargs: model(**kwargs).logits,
        customized_pruners={kind: _WidthOnly() for kind in norms | {_OpaqueAttention}},
        verbose=False,
    )


def _members(dependencies: tp.DependencyGraph, module: nn.Module) -> Iterator[_Member]:
    """The real modules that are coupled with the outputs of ``module``, itself included."""
    is_embedding = isinstance(module, nn.Embedding)
    prune = tp.prune_embedding_out_channels if is_embedding else tp.prune_linear_out_channels
    last = int(module.get_parameter("weight").shape[1 if is_embedding else 0]) - 1
    names = {member: name for name, member in dependencies.model.named_modules()}
    for dependency, indices in dependencies.get_pruning_group(module, prune, idxs=[0, last]):
        member = dependency.target.module
        if member in names and any(True for _ in member.parameters(recurse=False)):
            axis = 0 if dependencies.is_out_channel_pruning_fn(dependency.handler) else 1
            yield _Member(names[member], member, axis, tuple(sorted(indices)))


def _mlp_dimensions(
    dependencies: tp.DependencyGraph, layer_paths: list[str], residual: list[_Member]
) -> list[Dimension]:
    """The channel dimensions that torch-pruning finds between the linear layers of each decoder layer."""
    claimed = {member.name for member in residual if member.axis == 0}
    found = []
    for layer, path in enumerate(layer_paths):
        for name, module in dependencies.model.get_submodule(path).named_modules(prefix=path):
            if isinstance(module, nn.Linear) and name not in claimed:
                members = list(_members(dependencies, module))
                found.append(_channels(layer, module.out_features, path, members))
                claimed |= {member.name for member in members if member.axis == 0}
    return found


def _channels(layer: int, size: int, path: str, members: list[_Member]) -> Dimension:
    slices = []
    for member in members:
        name, linear = member.name, member.module
        if not isinstance(linear, nn.Linear) or not name.startswith(f"{path}.") or member.indices != (0, size - 1):
            raise UnsupportedModelError(
                f"{name} ({type(linear).__name__}) is coupled with the MLP of {path} in a way that is not understood"
            )
        slices.append(Slice(f"{name}.weight", member.axis))
        if member.axis == 0 and linear.bias is not None:
            slices.append(Slice(f"{name}.bias", 0))
    return Dimension(f"layers.{layer}.{Kind.MLP_CHANNELS}", Kind.MLP_CHANNELS, layer, size, tuple(slices))


def _check_known(shapes: dict[str, tuple[int, ...]], known: set[str]) -> None:
    unknown = sorted(set(shapes) - known)
    if unknown:
        raise UnsupportedModelError(
            f"{unknown[0]} with shape {shapes[unknown[0]]} is coupled with nothing that the trace knows"
        )
