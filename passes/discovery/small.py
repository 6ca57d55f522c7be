"""A small model of the same class: the configuration with few layers and small sizes, filled with random numbers.

The size of a head stays, since other entries (rotary sizes, scales) go with it; so do the kinds of layers there are.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from passes.errors import UnsupportedModelError
from passes.families import PER_TOKEN
from passes.models import has_own_sizes, reason, twin_of, vendor

HEADS, EXPERTS, EXPERTS_PER_TOKEN, VOCABULARY, POSITIONS, PATCHES = 4, 4, 2, 160, 512, 4
USUAL_HEAD, LEAST_CHANNELS = 64, 16
MOST_LAYERS = 12
GAIN = 0.5
"""What random matrices multiply the size of their inputs by: with more, deep models blow up every rounding."""

MOST_PARAMETERS = 100_000_000

HEAD_ENTRIES = (
    "num_attention_heads", "num_heads", "n_heads", "n_head", "encoder_attention_heads", "decoder_attention_heads",
    "num_encoder_attention_heads", "num_decoder_attention_heads",
)  # fmt: skip
KV_ENTRIES = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "num_local_key_value_heads")
HIDDEN_ENTRIES = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "attention_hidden_size")
LAYER_ENTRIES = (
    "num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers", "num_decoder_layers",
    "num_encoder_layers", "num_layers_per_stack",
)  # fmt: skip
EXPERT_ENTRIES = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
TOP_ENTRIES = (*PER_TOKEN, "top_k")
GROUP_ENTRIES = ("n_group", "topk_group")
STAGES = ("stage_names", "out_features", "out_indices")
"""Entries of vision models that follow from the number of layers."""

STATE_GROUPS = ("n_groups", "mamba_n_groups", "mamba_ngroups")
"""Entries of the groups of heads in state-space layers, of which there are no more than heads."""

STATE_SIZES = re.compile(r"mamba.*heads|mamba_d_ssm|ssm.*heads")
"""Entries of state-space layers that go with the hidden size."""

CHANNELS = re.compile(r"intermediate|ffn|inner|d_ff|mlp_(dim|size|hidden)|hidden_dim|feed_forward")


def small_config(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedConfig:
    """A configuration of few layers and small sizes, of which a model can be built; see ``small_configs``."""
    return next(small_configs(kind, config))


def small_configs(kind: type[PreTrainedModel], config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Configurations of few layers of which a model can be built, from the smallest sizes to the model's own.

    Raises UnsupportedModelError if the class builds none that is small.
    """
    _check_one_model(config)
    found, reasons = list[PreTrainedConfig](), list[str]()
    for sizes in (_sizes, _without_experts, _layers_only):
        values = {**config.to_dict(), **_layers(kind, config), **sizes(config)}
        try:
            plain = {name: value for name, value in values.items() if name.lstrip("_") not in STAGES}
            small = type(config).from_dict(_mended(plain))
            twin = twin_of(kind, small)
        except Exception as error:  # noqa: BLE001 whatever a class raises for sizes that it cannot have
            reasons.append(f"{type(error).__name__}: {reason(error)}")
            continue
        count = sum(parameter.numel() for parameter in twin.parameters())
        if count > MOST_PARAMETERS:
            reasons.append(f"with its layers cut to a few it still has {count:,} parameters")
        elif small.to_dict() not in (each.to_dict() for each in found):
            found.append(small)
            yield small
    if not found:
        raise UnsupportedModelError(
            f"no small model of {kind.__name__} can be built to prove its structure on: {reasons[0]}"
        )


def _check_one_model(config: PreTrainedConfig) -> None:
    """Raise UnsupportedModelError for a configuration of several models, or of sizes that are not its own entries."""
    if has_own_sizes(config):
        raise UnsupportedModelError(
            f"the layers of this {config.model_type} have sizes of their own (per_layer_config), and lpc prunes models "
            "whose layers are alike"
        )
    parts = [name for name in config.sub_configs if _is_model(getattr(config, name, None))]
    if parts:
        raise UnsupportedModelError(
            f"{config.model_type} is several models in one ({', '.join(parts)}), and lpc prunes one stack of layers: "
            "hand over the language model alone, saved with its own configuration"
        )
    wide = [name for name in config.sub_configs if _is_wide(getattr(config, name, None))]
    if wide:
        raise UnsupportedModelError(
            f"{config.model_type} says sizes in parts of its configuration ({', '.join(wide)}), and lpc cannot make "
            "these small, to prove its structure on a small model"
        )


def _is_wide(part: object) -> bool:
    return any(hasattr(part, name) for name in HIDDEN_ENTRIES)


def _is_model(part: object) -> bool:
    """Whether a part of a configuration is a model's: it has layers, or a type and a hidden size."""
    layers = any(hasattr(part, name) for name in LAYER_ENTRIES)
    return layers or (_is_wide(part) and bool(getattr(part, "model_type", "")))


def random_model(kind: type[PreTrainedModel], config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """The model of a configuration, fp32 and in evaluation mode, with random numbers in every parameter.

    Matrices are z / (2 sqrt(inputs)), z standard normal; vectors, and biases among what is stored beside parameters,
    are as they are initialised plus 0.2 z. Frozen tables (sines of positions), which no checkpoint holds, stay.
    """
    model = vendor.from_config(kind, copy.deepcopy(config), attention="eager", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    turned = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad and parameter.dim() > 1 and min(parameter.shape) > 1:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.add_(0.2 * noise)
            else:
                inputs = parameter.shape[0] if id(parameter) in turned else parameter[0].numel()
                stack = parameter.dim() == 3 and not _is_convolution(model, parameter)
                parameter.copy_(GAIN * noise / math.sqrt(parameter.shape[-1] if stack else inputs))
        for name, buffer in model.named_buffers():
            if name.endswith("bias") and buffer.is_floating_point():
                buffer.add_(0.2 * torch.randn(buffer.shape, generator=generator))
    model.tie_weights()
    return model.eval()


def _is_convolution(model: nn.Module, parameter: nn.Parameter) -> bool:
    return any(
        parameter is module.weight
        for module in model.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    )


def stacks_of(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of layers of a model, by path: those that lie in no other."""
    lists = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    return {
        path: module
        for path, module in lists.items()
        if not any(path.startswith(f"{other}.") for other in lists if other != path)
    }


def _layers(kind: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, Any]:
    """The entries of the layers: the first ones, as many as it takes to have one of each kind."""
    try:
        twin, values = twin_of(kind, config), config.to_dict()
    except Exception as error:  # whatever a class raises for a configuration that it cannot have
        raise UnsupportedModelError(
            f"{kind.__name__} cannot be built from this configuration: {type(error).__name__}: {error}"
        ) from error
    depths, found = dict(_numbers(config, LAYER_ENTRIES)), dict[str, Any]()
    stacks = [stack for stack in stacks_of(twin).values() if len(stack) in depths.values()]
    for name, depth in depths.items():
        few = min(depth, max([2, *(_prefix(stack) for stack in stacks if len(stack) == depth)]))
        if few > MOST_LAYERS:
            few = _fewest(kind, config, name, {_signature(layer) for stack in stacks for layer in stack})
        found[name] = few
        found |= {key: each[:few] for key, each in values.items() if isinstance(each, list) and len(each) == depth}
    for name, depth in depths.items():  # of layers that run several times, an entry may count all of the runs
        for stack in {len(stack) for stack in stacks} - {depth} if depth not in map(len, stacks) else ():
            if depth % stack == 0:
                found[name] = depth // stack * next(found[other] for other in depths if depths[other] == stack)
    return found


def _fewest(kind: type[PreTrainedModel], config: PreTrainedConfig, name: str, kinds: set[str]) -> int:
    """The least number of layers with which the class itself builds one of each kind, such as one for the last.

    Raises UnsupportedModelError if that are too many.
    """
    for few in range(2, MOST_LAYERS + 1):
        try:
            twin = twin_of(kind, type(config).from_dict({**config.to_dict(), name: few}))
        except Exception:  # noqa: BLE001 whatever a class raises for lists that are longer, and are kinds' own places
            break
        if kinds <= {_signature(layer) for stack in stacks_of(twin).values() for layer in stack}:
            return few
    raise UnsupportedModelError(
        f"{kind.__name__} has a kind of layer behind its first {MOST_LAYERS}, and a small model must have all"
    )


def _prefix(stack: nn.ModuleList) -> int:
    """How many layers from the first on have one of each kind among them."""
    kinds = [_signature(layer) for layer in stack]
    return max(kinds.index(kind) for kind in {*kinds}) + 1


def _signature(layer: nn.Module) -> str:
    shapes = [(name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()]
    kinds = [(name, type(module).__name__) for name, module in layer.named_modules()]
    marks = [
        str(value)
        for module in layer.modules()
        for name, value in vars(module).items()
        if isinstance(value, str | bool) or "window" in name
    ]
    return str((shapes, kinds, marks))


def _sizes(config: PreTrainedConfig) -> dict[str, Any]:
    """Few heads, a small hidden size and small MLPs, all MLP entries different from one another."""
    return {**_without_experts(config), **_few_experts(config)}


def _few_experts(config: PreTrainedConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in _numbers(config, EXPERT_ENTRIES):
        found[name] = min(value, EXPERTS)
    if found:
        found |= {name: min(value, EXPERTS_PER_TOKEN) for name, value in _numbers(config, TOP_ENTRIES)}
        found |= {name: 1 for name, _ in _numbers(config, GROUP_ENTRIES)}
    return found


def _without_experts(config: PreTrainedConfig) -> dict[str, Any]:
    found: dict[str, Any] = {name: min(value, HEADS) for name, value in _numbers(config, HEAD_ENTRIES)}
    dense, few = (next((sizes[name] for name in found), 1) for sizes in (config.to_dict(), found))
    for name, value in _numbers(config, KV_ENTRIES):
        found[name] = 1 if value == 1 else few if value == dense else max(1, few // 2)
    size = next((number for _, number in _numbers(config, ("head_dim",))), None)
    for name, value in _numbers(config, HIDDEN_ENTRIES):
        wide, odd = divmod(value * few, dense)
        found[name] = few * (size or value // dense or USUAL_HEAD) if odd or value % dense else wide
    values = config.to_dict()
    states = {name: value * few for name, value in values.items() if STATE_SIZES.search(name) and _is_number(value)}
    found |= {name: size // dense for name, size in states.items() if size % dense == 0}
    found |= {name: min(value, few) for name, value in _numbers(config, STATE_GROUPS)}
    wide_entries = [name for name, value in values.items() if CHANNELS.search(name) and _is_number(value)]
    wide_entries = [name for name in wide_entries if values[name] >= LEAST_CHANNELS]
    found |= {name: 48 + 16 * place for place, name in enumerate(wide_entries) if name not in found}
    return {**found, **_layers_only(config)}


def _layers_only(config: PreTrainedConfig) -> dict[str, Any]:
    values = config.to_dict()
    found: dict[str, Any] = {}
    words = [name for name, value in values.items() if "vocab" in name and _is_number(value)]
    found |= {name: min(values[name], VOCABULARY) for name in words}
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        if _is_number(values.get(name)):
            found[name] = min(values[name], POSITIONS)
    patch, image = values.get("patch_size"), values.get("image_size")
    if isinstance(patch, int) and isinstance(image, int) and image % patch == 0:
        found["image_size"] = min(image, PATCHES * patch)
    return found


def _mended(values: dict[str, Any]) -> dict[str, Any]:
    """The values with every special token within the vocabulary."""
    words = values.get("vocab_size")
    if not isinstance(words, int):
        return values
    place = 0
    for name, value in list(values.items()):
        if name.endswith("token_id") and value is not None:
            several = value if isinstance(value, list) else [value]
            if any(isinstance(each, int) and each >= words for each in several):
                place += 1
                values[name] = words - place
    return values


def _numbers(config: PreTrainedConfig, entries: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """The entries that a configuration has, under its own names, each once, with their numbers."""
    values: Mapping[str, Any] = config.to_dict()
    for name in {config.attribute_map.get(entry, entry): None for entry in entries}:
        if _is_number(values.get(name)):
            yield name, int(values[name])


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
