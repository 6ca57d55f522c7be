"""Stock transformers classes: the twin without weights, the configuration of a compact model, and building it.

Uniform widths fit the source's own class, where that class builds its sizes from its configuration. Stock Llama refuses
a head count that does not divide the hidden size, although nothing in the model needs that; such a model is written as
Mistral without a sliding window, which has the same state-dict keys and computes the same function.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
import transformers
from transformers import MistralConfig, PreTrainedConfig, PreTrainedModel

from passes.models import vendor
from passes.models.embedding import embedding_like

ROPE_BY_LENGTH = ("dynamic", "longrope")
"""The kinds of rotary embedding whose frequencies depend on how long the input is, not on what has which shape."""


def twin_of(model_type: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device: names and shapes, no memory.

    Its forward pass takes no way by the values of positions or masks, which meta tensors do not have: it is for
    following shapes, not for numbers.
    """
    return weightless(model_type, _valueless(config))


def weightless(model_type: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model as its configuration builds it, on the meta device: for asking what it is, not for running it."""
    with torch.device("meta"):
        # Eager attention: the others inspect the values of masks.
        return vendor.from_config(model_type, copy.deepcopy(config), attention="eager")


def rope_types(config: PreTrainedConfig) -> tuple[str, ...]:
    """The kinds of rotary embedding that the layers of a model have; none if it has no rotary embedding."""
    return tuple(dict.fromkeys(str(entries.get("rope_type", "default")) for entries in _rope_entries(config)))


def _rope_entries(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The configuration's settings of rotary embeddings: one for all layers, or one a type of layer."""
    rope = getattr(config.get_text_config(), "rope_parameters", None)
    if not isinstance(rope, dict):
        return []
    return list(rope.values()) if rope and all(isinstance(value, dict) for value in rope.values()) else [rope]


def _valueless(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy under which transformers decides nothing by the values of positions."""
    config = copy.deepcopy(config)
    text: Any = config.get_text_config()
    if getattr(text, "use_cache", None) is False:
        text.use_cache = True  # without a cache, positions are searched for packed sequences
    for entries in _rope_entries(config):
        if entries.get("rope_type") in ROPE_BY_LENGTH:
            entries["rope_type"] = "default"
    return config


def shallow(config: PreTrainedConfig, layers: int, wanted: int) -> PreTrainedConfig:
    """The configuration with another number of layers; entries with an element a layer are cut, or repeated."""
    values: dict[str, Any] = copy.deepcopy(config.to_dict())
    for name, value in values.items():
        if isinstance(value, list) and len(value) == layers:
            values[name] = (value * wanted)[:wanted]
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = wanted
    return type(config).from_dict(values)


def stock_class(model_type: type[PreTrainedModel], config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that a compact configuration is for: the source's own, or Mistral's in place of Llama's."""
    if isinstance(config, MistralConfig) and model_type.__name__.startswith("Llama"):
        name = model_type.__name__.replace("Llama", "Mistral", 1)
        return embedding_like(cast("type[PreTrainedModel]", getattr(transformers, name)), model_type)
    return model_type


def build_stock(config: PreTrainedConfig, state: Mapping[str, torch.Tensor], like: PreTrainedModel) -> PreTrainedModel:
    """The stock model of ``config`` that holds exactly the tensors of ``state``; everything else as in ``like``."""
    return filled(shell(stock_class(type(like), config), config, like), state, like)


def shell(kind: type[PreTrainedModel], config: PreTrainedConfig, like: PreTrainedModel) -> PreTrainedModel:
    """A model of a class with nothing in its weights, ready to be ``filled``; on the meta device if ``like`` is."""
    with torch.device("meta") if like.device.type == "meta" else nullcontext():
        return vendor.from_config(kind, config, attention=vendor.attention_of(like.config), initialised=False)


def filled(model: PreTrainedModel, state: Mapping[str, torch.Tensor], like: PreTrainedModel) -> PreTrainedModel:
    """``model`` with the tensors of ``state`` as its own, and everything that is no tensor as in ``like``.

    Its weights can be trained, as a loaded model's: torch would copy a frozen head for each row that ``generate`` asks.
    """
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    if getattr(like, "generation_config", None) is not None:
        model.generation_config = like.generation_config
    return model.train(like.training)
