"""Whether the loss of a model as it was given is plausible, before anything is ranked and measured by it."""

from __future__ import annotations

import logging
import math

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lpc.data import IGNORED, TextFrame
from lpc.evaluation.perplexity import exp, token_perplexity

__all__ = ["warn_of_loss", "warn_of_text"]

logger = logging.getLogger(__name__)

SAMPLE = 4
"""Sequences that are measured with another beginning."""

FAR_BETTER = 0.8
"""Perplexity with another beginning, as a share of that with the tokenizer's own, from which on it is far better."""


def warn_of_loss(loss: float, vocabulary: int | None) -> None:
    """Warn of a loss in nats a token that is no number, or worse than a guess among all tokens."""
    if not math.isfinite(loss):
        logger.warning(
            "the model as given has loss %s on held-out data: its weights or logits hold NaN or infinite numbers", loss
        )
    elif vocabulary is not None and loss > math.log(vocabulary):
        logger.warning(
            "the model as given has perplexity %.4g on held-out data, worse than a guess among its %d tokens: its "
            "weights are not trained or not all loaded, the tokenizer is another model's, or the data are not of the "
            "kind that it was trained on; what is ranked and measured here means little",
            exp(loss),
            vocabulary,
        )


def warn_of_text(
    model: PreTrainedModel | torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    blocks: torch.Tensor,
    loss: float,
) -> None:
    """`warn_of_loss` for held-out blocks of text ``[n, L]``, and warn if they would do far better begun otherwise.

    A tokenizer that adds bos is tried without, and one that adds none with it: the same tokens are predicted, of some
    of the blocks.
    """
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    warn_of_loss(loss, getattr(text, "vocab_size", None))
    if tokenizer is None or not math.isfinite(loss):
        return
    opening = list(TextFrame.of(tokenizer).opening)
    known = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else getattr(text, "bos_token_id", None)
    bos = opening[0] if opening else known
    if not isinstance(bos, int):
        return
    begins: list[list[int]] = [[], [bos]] if not opening else [opening, []]
    room = blocks.shape[1] - max(map(len, begins))
    if room < 2:
        return
    content = blocks[:SAMPLE, len(opening) : len(opening) + room]
    first, second = (_perplexity(model, begin, content) for begin in begins)
    if second < FAR_BETTER * first:
        name = tokenizer.convert_ids_to_tokens(bos)
        logger.warning(
            "the model as given has perplexity %.4g on held-out text as its tokenizer begins a text, and %.4g %s %s in "
            "front: hand over a tokenizer that begins texts as the model learnt them (tokenizer=); units are ranked "
            "and all is measured in the worse state",
            first,
            second,
            "without" if opening else "with",
            name,
        )


def _perplexity(model: torch.nn.Module, begin: list[int], content: torch.Tensor) -> float:
    """Perplexity of all but the first token of ``content`` ``[n, L]`` behind some tokens."""
    before = torch.tensor(begin, dtype=content.dtype).expand(len(content), len(begin))
    blocks = torch.cat([before, content], dim=1)
    labels = blocks.clone()
    labels[:, : len(begin) + 1] = IGNORED
    return token_perplexity(model, blocks, labels=labels).value
