"""Pruning graphs of tiny models written out by hand, and dense models with W0 + sBA materialised by plain loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import zoo
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from passes.graph import Dimension, Kind, PruningGraph, Role, Slice
from passes.models import lora_config
from passes.options import LoraOptions

RANK, SCALING = 3, 2.0

Parts = tuple[tuple[str, int, tuple[tuple[int, int], ...], Role], ...]
ONE = ((0, 1),)


def dimension(name: str, kind: Kind, layer: int, size: int, prefix: str, parts: Parts) -> Dimension:
    slices = tuple(Slice(f"{prefix}{parameter}", axis, segments, role) for parameter, axis, segments, role in parts)
    return Dimension(f"layers.{layer}.{name}", kind, layer, size, slices, name)


def _llama(layer: int) -> list[Dimension]:
    attention: Parts = (
        ("q_proj.weight", 0, ((0, 16),), Role.PRODUCE),
        ("k_proj.weight", 0, ((0, 8),), Role.PRODUCE),
        ("v_proj.weight", 0, ((0, 8),), Role.PRODUCE),
        ("o_proj.weight", 1, ((0, 16),), Role.CONSUME),
    )
    mlp: Parts = (
        ("gate_proj.weight", 0, ONE, Role.PRODUCE),
        ("up_proj.weight", 0, ONE, Role.PRODUCE),
        ("down_proj.weight", 1, ONE, Role.CONSUME),
    )
    prefix = f"model.layers.{layer}"
    return [
        dimension("kv_groups", Kind.KV_GROUPS, layer, 4, f"{prefix}.self_attn.", attention),
        dimension("mlp_channels", Kind.MLP_CHANNELS, layer, 64, f"{prefix}.mlp.", mlp),
    ]


def _gpt2(layer: int) -> list[Dimension]:
    attention: Parts = (
        ("c_attn.weight", 1, ((0, 4), (32, 4), (64, 4)), Role.PRODUCE),
        ("c_attn.bias", 0, ((0, 4), (32, 4), (64, 4)), Role.FOLLOW),
        ("c_proj.weight", 0, ((0, 4),), Role.CONSUME),
    )
    mlp: Parts = (("c_fc.weight", 1, ONE, Role.PRODUCE), ("c_proj.weight", 0, ONE, Role.CONSUME))
    prefix = f"transformer.h.{layer}"
    return [
        dimension("kv_groups", Kind.KV_GROUPS, layer, 8, f"{prefix}.attn.", attention),
        dimension("mlp_channels", Kind.MLP_CHANNELS, layer, 64, f"{prefix}.mlp.", mlp),
    ]


def _phi3(layer: int) -> list[Dimension]:
    attention: Parts = (
        ("qkv_proj.weight", 0, ((0, 8), (32, 4), (48, 4)), Role.PRODUCE),
        ("o_proj.weight", 1, ((0, 8),), Role.CONSUME),
    )
    mlp: Parts = (
        ("gate_up_proj.weight", 0, ((0, 1), (64, 1)), Role.PRODUCE),
        ("down_proj.weight", 1, ONE, Role.CONSUME),
    )
    prefix = f"model.layers.{layer}"
    return [
        dimension("kv_groups", Kind.KV_GROUPS, layer, 4, f"{prefix}.self_attn.", attention),
        dimension("mlp_channels", Kind.MLP_CHANNELS, layer, 64, f"{prefix}.mlp.", mlp),
    ]


def _experts(layer: int, channels: int) -> list[Dimension]:
    prefix = f"model.layers.{layer}.mlp"
    stacks = f"{prefix}.experts.gate_up_proj", f"{prefix}.experts.down_proj"
    found = [_llama(layer)[0]]
    for expert in range(4):
        slices = (
            Slice(stacks[0], 1, ((0, 1), (channels, 1)), Role.PRODUCE, at=expert),
            Slice(stacks[1], 2, ONE, Role.CONSUME, at=expert),
        )
        name = f"layers.{layer}.experts.{expert}.channels"
        found.append(Dimension(name, Kind.EXPERT_CHANNELS, layer, channels, slices, "expert_channels"))
    owned = tuple(Slice(stack, 0, ONE, Role.OWN) for stack in stacks)
    slices = (*owned, Slice(f"{prefix}.gate.weight", 0))
    return [*found, Dimension(f"layers.{layer}.experts", Kind.EXPERTS, layer, 4, slices, "experts")]


def _bert(layer: int) -> list[Dimension]:
    attention: Parts = (
        ("self.query.weight", 0, ((0, 4),), Role.PRODUCE),
        ("self.key.weight", 0, ((0, 4),), Role.PRODUCE),
        ("self.value.weight", 0, ((0, 4),), Role.PRODUCE),
        ("output.dense.weight", 1, ((0, 4),), Role.CONSUME),
    )
    mlp: Parts = (
        ("intermediate.dense.weight", 0, ONE, Role.PRODUCE),
        ("output.dense.weight", 1, ONE, Role.CONSUME),
    )
    prefix = f"bert.encoder.layer.{layer}"
    return [
        dimension("kv_groups", Kind.KV_GROUPS, layer, 8, f"{prefix}.attention.", attention),
        dimension("mlp_channels", Kind.MLP_CHANNELS, layer, 64, f"{prefix}.", mlp),
    ]


def _falcon(layer: int) -> list[Dimension]:
    parts: Parts = (
        ("dense_h_to_4h.weight", 0, ONE, Role.PRODUCE),
        ("dense_4h_to_h.weight", 1, ONE, Role.CONSUME),
    )
    return [dimension("mlp_channels", Kind.MLP_CHANNELS, layer, 64, f"transformer.h.{layer}.mlp.", parts)]


def _t5(layer: int) -> list[Dimension]:
    """The decoder's MLPs alone: neither its attention, nor the encoder, nor the head."""
    parts: Parts = (("wi.weight", 0, ONE, Role.PRODUCE), ("wo.weight", 1, ONE, Role.CONSUME))
    prefix = f"decoder.block.{layer}.layer.2.DenseReluDense."
    return [dimension("mlp_channels", Kind.MLP_CHANNELS, layer, 64, prefix, parts)]


def _mixed(layer: int) -> list[Dimension]:
    return _experts(layer, 24) if layer else _llama(layer)


LAYERS: dict[str, Callable[[int], list[Dimension]]] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "phi3": _phi3,
    "mixtral": lambda layer: _experts(layer, 64),
    "qwen3_moe": lambda layer: _experts(layer, 24),
    "qwen3_moe-mixed": _mixed,
    "bert": _bert,
    "bert-sequence-classification": _bert,
    "llama-sequence-classification": _llama,
    "falcon-mqa": _falcon,
    "t5": _t5,
}


def graph_of(name: str, model: PreTrainedModel) -> PruningGraph:
    """The graph of a model of the zoo; of two layers."""
    dimensions = tuple(found for layer in range(2) for found in LAYERS[name](layer))
    shapes = {parameter: tuple(value.shape) for parameter, value in model.named_parameters()}
    return PruningGraph(
        family=model.config.model_type,
        dtype=model.dtype,
        shapes=shapes,
        matmuls=(),
        dimensions=dimensions,
        widths=(),
        untouched={},
    )


def worn(name: str, **options: object) -> tuple[PeftModel, PruningGraph]:
    """A model of the zoo in an adapter whose A and B are random, and its graph."""
    model = zoo.build(name)
    graph = graph_of(name, model)
    lora = LoraOptions(**{"rank": RANK, "alpha": RANK * SCALING, **options})
    adapted = get_peft_model(model, lora_config(lora, graph, model)).eval()
    randomise(adapted)
    return adapted, graph


def exact(model: PeftModel | PreTrainedModel) -> PeftModel | PreTrainedModel:
    """The model in double precision, where the fast kernels of experts do not work."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if hasattr(base.config, "num_experts_per_tok"):
        base.set_experts_implementation("eager")
    return model.double()


def randomise(model: PeftModel, seed: int = 5) -> None:
    """Makes A and B random, so that no term of any formula is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def factors(model: PeftModel, parameter: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A [r, in] and B [out, r] of a parameter, of each expert if it is a stack; from the adapter's own tensors.

    The names are those of peft's nesting: of two stacks of a module, gate_up_proj is wrapped first, so innermost.
    """
    path, _, leaf = parameter.rpartition(".")
    inner = "base_layer." if leaf == "gate_up_proj" else ""
    state = {key: value.detach() for key, value in model.get_base_model().named_parameters()}
    a, b = (state[f"{path}.{inner}lora_{side}.default.weight"] for side in "AB")
    count = len(a) // RANK
    return [(a[e * RANK : (e + 1) * RANK], b[:, e::count]) for e in range(count)]


def weights_of(graph: PruningGraph) -> set[str]:
    return {part.parameter for d in graph.dimensions for part in d.weights}


def materialised(model: PeftModel, pristine: PreTrainedModel, names: Iterable[str]) -> PreTrainedModel:
    """``pristine`` with s·BA added by hand to the named weights; all its weights require gradients."""
    twin = pristine.to(model.dtype).requires_grad_(True)
    with torch.no_grad():
        for name in names:
            weight, pairs = twin.get_parameter(name), factors(model, name)
            if weight.dim() == 3:
                for expert, (a, b) in enumerate(pairs):
                    weight[expert] += SCALING * (b @ a)
            else:
                delta = SCALING * (pairs[0][1] @ pairs[0][0])
                weight += delta.T if isinstance(_holder(twin, name), Conv1D) else delta
    return twin


def _holder(model: PreTrainedModel, parameter: str) -> nn.Module:
    return model.get_submodule(parameter.rpartition(".")[0])


def by_loops(scores: torch.Tensor, part: Slice, units: int) -> torch.Tensor:
    """Scores of the elements of a weight, laid out as it is stored, summed over the indices of each unit."""
    axis = part.axis
    if part.at is not None:
        scores, axis = scores[part.at], axis - 1
    return torch.stack([sum(scores.select(axis, i).sum() for i in part.indices([unit])) for unit in range(units)])


def backward(model: PreTrainedModel | PeftModel, name: str, seed: int = 0) -> None:
    """A backward pass of the model's own loss on a batch of the zoo's."""
    case = zoo.ZOO[name]
    batch = zoo.inputs(name, case, seed=seed)
    model.zero_grad()
    model(**batch, **zoo.labels(case, batch, seed=seed)).loss.backward()


@torch.no_grad()
def logits(model: PreTrainedModel | PeftModel, name: str) -> torch.Tensor:
    return model(**zoo.inputs(name, zoo.ZOO[name])).logits


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max())
