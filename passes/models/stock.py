"""Stock transformers classes: the twin without weights, the configuration of a compact model, and building it.

Uniform widths fit the source's own class, where that class builds its sizes from its configuration. Stock Llama refuses
a head count that does not divide the hidden size, although nothing in the model needs that; such a model is written as
Mistral without a sliding window, which has the same state-dict keys and computes the same function.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
import transformers
from transformers import MistralConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights


def twin_of(model_type: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        # Eager attention: the others inspect the values of masks, which meta tensors do not have.
        twin = cast(Any, model_type)._from_config(copy.deepcopy(config), attn_implementation="eager")
    twin.config.pad_token_id = None  # or GPT-2 looks for it in the values of its input
    return cast(PreTrainedModel, twin)


def stock_class(model_type: type[PreTrainedModel], config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that a compact configuration is for: the source's own, or Mistral's in place of Llama's."""
    if isinstance(config, MistralConfig) and model_type.__name__.startswith("Llama"):
        name = model_type.__name__.replace("Llama", "Mistral", 1)
        return cast("type[PreTrainedModel]", getattr(transformers, name))
    return model_type


def build_stock(config: PreTrainedConfig, state: Mapping[str, torch.Tensor], like: PreTrainedModel) -> PreTrainedModel:
    """The stock model of ``config`` that holds exactly the tensors of ``state``; everything else as in ``like``."""
    cls = cast(Any, stock_class(type(like), config))
    with no_init_weights():
        model = cls._from_config(config, attn_implementation=like.config._attn_implementation)
    return filled(model, state, like)


def filled(model: PreTrainedModel, state: Mapping[str, torch.Tensor], like: PreTrainedModel) -> PreTrainedModel:
    """``model`` with the tensors of ``state`` as its own, and everything that is no tensor as in ``like``."""
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    if getattr(like, "generation_config", None) is not None:
        model.generation_config = like.generation_config
    return model.requires_grad_(False).train(like.training)
