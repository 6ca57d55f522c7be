"""Early: the compact model before tuning is done, around weights that still wear their adapter."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from passes.graph import PruningGraph
from passes.models import base_model, filled, plain_name, vendor
from passes.shrink.cut import build_compact
from passes.shrink.gathered import Gathered
from passes.shrink.rescale import rescales


def only_cut(graph: PruningGraph, kept: Mapping[str, Sequence[int]]) -> bool:
    """Whether the compact model's tensors are the dense one's with rows and columns cut: none rescaled, no layer gone.

    Then an adapter may be cut likewise, and W0 + s·BA cut is the cut W0 with the cut adapter.
    """
    return not graph.removed(kept) and not rescales(graph, kept)


def early_compact(model: PeftModel, graph: PruningGraph, kept: Mapping[str, Sequence[int]]) -> PreTrainedModel:
    """The compact model of what wears an adapter, without it. It shares the tensors of which nothing is cut.

    Raises PostconditionError unless each of its tensors is, bit for bit, what is left of the dense one's.
    """
    bare = without_adapter(model)
    compact = build_compact(bare, graph, kept).to(bare.device)
    Gathered(bare, compact, graph, kept).check(graph.parameters(kept))
    return compact


def without_adapter(model: PeftModel) -> PreTrainedModel:
    """A second model around the same weights, which wears nothing; no tensor is copied."""
    base = base_model(model)
    state = {plain_name(name): value for name, value in base.state_dict().items() if ".lora_" not in name}
    with torch.device(base.device):
        bare = vendor.from_config(
            type(base), copy.deepcopy(base.config), attention=vendor.attention_of(base.config), initialised=False
        )
    return filled(bare, state, like=base)
