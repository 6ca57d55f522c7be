"""Token perplexity of a model on blocks of tokens, in plain torch: the light measure used while compressing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from lpc.data import IGNORED
from passes.errors import DataError
from passes.models import evaluation_mode
from passes.options import RunOptions

__all__ = ["Perplexity", "exp", "token_perplexity"]

BATCH_SIZE = RunOptions().batch_size


@dataclass(frozen=True)
class Perplexity:
    """``value`` = exp(mean negative log-likelihood in nats) of ``tokens`` tokens, in windows of ``context_length``."""

    value: float
    tokens: int
    context_length: int


def token_perplexity(
    model: torch.nn.Module, blocks: torch.Tensor, batch_size: int = BATCH_SIZE, *, labels: torch.Tensor | None = None
) -> Perplexity:
    """Perplexity of tokens 2..L of each block ``[n, L]``; no block sees another.

    Tokens whose ``labels`` ``[n, L]`` are -100 are not counted (default: all are). Blocks are taken as they are: they
    must begin as the model's texts do (`lpc.data.token_sequences` sees to that). ``model`` is a causal `transformers`
    model (or a PEFT one); it comes back with the training flags it had. The logits are read as float32 and summed in
    float64. A NaN in the model gives a NaN. Raises `DataError` for blocks without a token to predict, `OptionError` for
    a batch size below 1.
    """
    if blocks.ndim != 2 or blocks.shape[0] == 0 or blocks.shape[1] < 2:
        raise DataError(f"perplexity needs blocks [n, L] with n >= 1 and L >= 2, not {list(blocks.shape)}")
    RunOptions(batch_size=batch_size)
    wanted = (blocks if labels is None else labels)[:, 1:]
    tokens = int((wanted != IGNORED).sum())
    if tokens == 0:
        raise DataError("perplexity needs a token to predict, and all labels are -100")
    device = next(model.parameters()).device
    total = 0.0
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(blocks), batch_size):
            ids, targets = (each[start : start + batch_size].to(device) for each in (blocks, wanted))
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            flat = targets.flatten()
            losses = cross_entropy(logits.flatten(0, 1), flat, reduction="none", ignore_index=IGNORED)
            total += float(losses.double().sum())
    return Perplexity(exp(total / tokens), tokens, blocks.shape[1])


def exp(nats: float) -> float:
    """``math.exp``, but infinite where that would overflow."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
