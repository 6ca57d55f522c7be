"""What the tests of the hidden size share: the families that have it, and dense models without some of its channels."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import zoo
from shrinking import Kept
from silenced import BY_HAND
from transformers import PreTrainedModel
from workbench import random_units

from passes.graph import PruningGraph

CASES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "smollm3", "olmo2", "phi3",
    "mixtral", "qwen3_moe", "llama-sequence-classification",
)  # fmt: skip
LOUD = {"rms_norm_eps": 0.3}
"""An epsilon that counts, so that a wrong one is heard."""


def units(graph: PruningGraph, hidden: int, seed: int) -> Kept:
    """Random units: so many hidden channels, and of every other width the middle one of the counts."""
    counts = {width.name: width.counts[len(width.counts) // 2] for width in graph.widths}
    return random_units(graph, {**counts, "hidden": hidden}, seed)


@torch.no_grad()
def without_channels(model: PreTrainedModel, gone: Iterable[int]) -> PreTrainedModel:
    """A dense copy in which nothing writes these hidden channels: zeros in the embedding and in all outputs."""
    found, channels = copy.deepcopy(model), list(gone)
    found.get_input_embeddings().weight[:, channels] = 0
    for layer in found.model.layers:
        experts = getattr(layer.mlp, "experts", None)
        for linear in (layer.self_attn.o_proj, *(() if experts is not None else (layer.mlp.down_proj,))):
            linear.weight[channels] = 0
            if linear.bias is not None:
                linear.bias[channels] = 0
        if experts is not None:
            experts.down_proj[:, channels] = 0
    return found


def hidden_by_hand(name: str, model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A dense copy of a model of the zoo that hears none of the removed units of any dimension."""
    found = without_channels(model, set(range(model.config.hidden_size)) - set(kept["hidden"]))
    with torch.no_grad():
        BY_HAND.get(zoo.ZOO[name].family, BY_HAND["llama"])(found, kept)
    return found
