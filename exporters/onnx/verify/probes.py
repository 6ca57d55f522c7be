"""Random inputs to compare with: always the same ones for the same model."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

PROBE_TOKENS = 11
LONGEST_WINDOW_PROBE = 256
"""Sliding windows up to this length are crossed by the probes; longer ones would make the check too expensive."""


def vocabulary(model: PreTrainedModel) -> int:
    """Rows of the input embedding."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest text that the model has positions for, or None; RoBERTa's start behind the padding token's id."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if not longest:
        return None
    tables = [module for name, module in model.named_modules() if name.endswith("embeddings.position_embeddings")]
    pads = [getattr(table, "padding_idx", None) for table in tables]
    return int(longest) - max((pad + 1 for pad in pads if pad is not None), default=0)


def probe_length(model: PreTrainedModel) -> int:
    """Tokens of a probe: a few, or enough to cross the sliding window, and never past the model's context."""
    config = model.config
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None) or 0
    if window > LONGEST_WINDOW_PROBE:
        logger.info("the sliding window of %d tokens is longer than the probes; they do not cross it", window)
        window = 0
    return max(4, min(max(PROBE_TOKENS, window + 4), position_limit(model) or PROBE_TOKENS + window))


def probe_ids(model: PreTrainedModel, batch: int, tokens: int) -> torch.Tensor:
    """Random token ids (batch, tokens)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary(model), (batch, tokens), generator=generator)


def padded(ids: torch.Tensor, *, left: bool) -> torch.Tensor:
    """A mask (batch, tokens): the first row is whole, each further one has two more pads; at least two tokens stay."""
    mask = torch.ones_like(ids)
    for row in range(1, len(ids)):
        pads = min(2 * row, ids.shape[1] - 2)
        if pads > 0:
            mask[row, slice(None, pads) if left else slice(-pads, None)] = 0
    return mask
