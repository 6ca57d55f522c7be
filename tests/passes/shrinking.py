"""What the tests of masks and of compact models share, for every structure of the zoo."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
import zoo
from transformers import PreTrainedModel
from workbench import random_units

from passes.graph import PruningGraph
from passes.models import masked, vendor
from passes.options import TraceOptions
from passes.trace import trace

Kept = Mapping[str, tuple[int, ...]]

HEADS = ("logits", "start_logits", "end_logits")
TOKENWISE = ("causal-lm", "masked-lm", "token-classification", "question-answering")
DECODED = 2  # tokens that are decoded one by one behind the prefill


@lru_cache
def dense(name: str, **changes: object) -> PreTrainedModel:
    """The model of a case, which no test may change."""
    return zoo.build(name, **changes)


@lru_cache
def graph_of(
    name: str, *, query_heads: bool = False, custom_code: bool = False, hidden: bool = False, **changes: object
) -> PruningGraph:
    model = dense(name, **changes)
    options = TraceOptions(query_heads=query_heads, custom_code=custom_code, hidden=hidden)
    return trace(model.config, torch.float32, model_type=type(model), options=options)


def masks_of(graph: PruningGraph, kept: Kept) -> dict[str, torch.Tensor]:
    """Boolean masks [units] a dimension."""
    masks = {}
    for dimension in graph.dimensions:
        masks[dimension.name] = torch.zeros(dimension.size, dtype=torch.bool)
        masks[dimension.name][list(kept[dimension.name])] = True
    return masks


def some_units(graph: PruningGraph, seed: int = 0) -> Kept:
    """Random units: of every width the middle one of the allowed counts."""
    return random_units(graph, {width.name: width.counts[len(width.counts) // 2] for width in graph.widths}, seed)


def counted(kept: Kept) -> dict[str, int]:
    return {name: len(units) for name, units in kept.items()}


@torch.no_grad()
def outputs(model: PreTrainedModel, name: str) -> torch.Tensor:
    """All outputs of the head on the batch of a case in one forward pass, where its tokens are real."""
    case = zoo.ZOO[name]
    batch = zoo.inputs(model, case)
    output = model(**{k: v.to(model.dtype) if v.is_floating_point() else v for k, v in batch.items()})
    found = [output[head] for head in HEADS if output.get(head) is not None]
    if case.task in TOKENWISE:
        found = [value[batch["attention_mask"].bool()] for value in found]
    return torch.cat([value.flatten() for value in found])


@torch.no_grad()
def decoded(model: PreTrainedModel, name: str) -> torch.Tensor | None:
    """The same with a cache: a prefill, and then a token at a time. None of a model that does not generate."""
    case = zoo.ZOO[name]
    batch = zoo.inputs(model, case)
    if case.task == "causal-lm":
        ids, mask = batch["input_ids"], batch["attention_mask"]
        return _stepwise(model, ids, mask)[mask.bool()].flatten()
    if case.task == "seq2seq-lm":
        encoded = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        fixed = {"encoder_outputs": encoded, "attention_mask": batch["attention_mask"]}
        return _decoder_stepwise(model, batch["decoder_input_ids"], fixed).flatten()
    return None


def _stepwise(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    length, past, found = ids.shape[1], None, []
    start = 0
    for end in range(length - DECODED, length + 1):
        output = model(
            ids[:, start:end], attention_mask=mask[:, :end], use_cache=True, **vendor.with_cache(model, past)
        )
        past, start = vendor.cache_of(output), end
        found.append(output.logits)
    return torch.cat(found, 1)


def _decoder_stepwise(model: PreTrainedModel, ids: torch.Tensor, fixed: dict[str, object]) -> torch.Tensor:
    past, found, start = None, [], 0
    for end in range(ids.shape[1] - DECODED, ids.shape[1] + 1):
        output = model(decoder_input_ids=ids[:, start:end], use_cache=True, **vendor.with_cache(model, past), **fixed)
        past, start = vendor.cache_of(output), end
        found.append(output.logits)
    return torch.cat(found, 1)


def masked_outputs(model: PreTrainedModel, graph: PruningGraph, kept: Kept, name: str) -> torch.Tensor:
    with masked(model, graph, masks_of(graph, kept)):
        return outputs(model, name)
