"""Renumber: the same model without some of its layers, as its stock class builds it with a lower layer count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from passes.errors import UnsupportedModelError
from passes.graph import PruningGraph, Renumbering
from passes.models import filled, reason, shell, twin_of

LAYER_LISTS = ("layer_types", "no_rope_layers")
"""Configuration entries with an element a layer."""
LAYER_NUMBERS = ("mlp_only_layers",)
"""Configuration entries with the numbers of some layers."""
NUMBERS = ("layer_idx", "layer_id")
"""Attributes that say which layer a module is in: with them the cache is addressed."""


def layer_config(config: PreTrainedConfig, stay: Sequence[int]) -> PreTrainedConfig:
    """The configuration with these layers left, its entries a layer filtered."""
    values, layers = config.to_dict(), int(config.num_hidden_layers)
    for name in LAYER_LISTS:
        entries = values.get(name)
        if isinstance(entries, list) and len(entries) == layers:
            values[name] = [entries[layer] for layer in stay]
    step = values.get("decoder_sparse_step") or 1
    for name in LAYER_NUMBERS:
        if isinstance(values.get(name), list):
            # Qwen-MoE: an MLP also where the layer's number is not a multiple of the step; renumbered, that is said too
            chosen = {layer for layer in range(layers) if layer in values[name] or (layer + 1) % step}
            values[name] = [new for new, layer in enumerate(stay) if layer in chosen]
            values |= {"decoder_sparse_step": 1} if step > 1 else {}
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(stay)
    return type(config).from_dict(values)


def without_layers(
    model: PreTrainedModel, graph: PruningGraph, kept: Mapping[str, Sequence[int]]
) -> tuple[PreTrainedModel, PruningGraph, Mapping[str, Sequence[int]]]:
    """The model without its removed layers, and the graph and the kept units that belong to it.

    The weights are the same tensors. Raises UnsupportedModelError where a layer would become another one by its new
    number.
    """
    renumbering = Renumbering.of(graph, kept)
    if renumbering is None:
        return model, graph, kept
    why_not = why_another_model(type(model), model.config, renumbering)
    if why_not is not None:
        raise UnsupportedModelError(why_not)
    config = layer_config(model.config, renumbering.stay)
    smaller = filled(shell(type(model), config, model), renumbering.mapping(model.state_dict()), like=model)
    return smaller, renumbering.graph(graph), renumbering.kept(graph, kept)


def why_another_model(
    model_type: type[PreTrainedModel], config: PreTrainedConfig, renumbering: Renumbering
) -> str | None:
    """Why the stock class with fewer layers is not the dense model without the others, or None if it is.

    Two twins are compared: a layer must have the same modules, settings and shapes as the layer that it was.
    """
    dense = twin_of(model_type, config)
    try:
        smaller = twin_of(model_type, layer_config(config, renumbering.stay))
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        return f"the stock class cannot be built with fewer layers: {reason(error)}"
    wanted = renumbering.mapping(dict(dense.named_modules()))
    found = dict(smaller.named_modules())
    odd = sorted(wanted.keys() ^ found.keys())
    if odd:
        return f"with fewer layers, the stock class has {'no' if odd[0] in wanted else 'one more'} {odd[0]}"
    inside = (name for name in wanted if name.startswith(f"{renumbering.stack}."))
    return next((each for name in inside if (each := _difference(name, wanted[name], found[name]))), None)


def _difference(name: str, before: nn.Module, after: nn.Module) -> str | None:
    was, is_now = _settings(before), _settings(after)
    for setting in sorted(was.keys() | is_now.keys()):
        if was.get(setting) != is_now.get(setting):
            return f"{name} changes with its number: {setting} is {is_now.get(setting)}, not {was.get(setting)}"
    return None


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module knows beside tensors, and the shapes of those that it has itself."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str | tuple)}
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters(recurse=False)}
    return {name: value for name, value in {**plain, **shapes}.items() if name not in NUMBERS}
