"""A few completions: what a language model goes on with, greedily, after prompts that it was not tuned on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lpc.data import IGNORED
from passes.models import Task, base_model, evaluation_mode, task_of
from passes.ranks import sharded

__all__ = ["NEW_TOKENS", "completions", "prompts_in"]

PROMPTS = 3
"""So many held-out rows are begun and gone on with."""
BEGINNING = 24
"""Tokens of a text that are its prompt; at most half of it."""
LONGEST = 192
"""A prompt of more tokens is left out."""
NEW_TOKENS = 24


def prompts_in(rows: Dataset[dict[str, torch.Tensor]]) -> Iterator[list[int]]:
    """The prompts of some rows, evenly spaced: what stands before the first label, or the beginning of a text."""
    last = len(rows) - 1  # type: ignore[arg-type]
    for place in dict.fromkeys(round(number * last / (PROMPTS - 1)) for number in range(PROMPTS)):
        row = rows[place]
        ids, labels = row["input_ids"].tolist(), row.get("labels", row["input_ids"]).tolist()
        masked = next((at for at, label in enumerate(labels) if label != IGNORED), len(labels))
        count = masked if masked > 1 else min(BEGINNING, len(ids) // 2)
        if 0 < count < len(ids) and count <= LONGEST:
            yield ids[:count]


def completions(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None,
    rows: Dataset[dict[str, torch.Tensor]],
) -> tuple[tuple[str, str], ...]:
    """Prompts in some rows, and what the model goes on with, as texts; none for what is no causal language model or has
    no tokenizer.

    The most probable token each time, at most ``NEW_TOKENS``, up to the end that the tokenizer knows. All tokens are
    run anew for each, as any ``forward`` can, prompts of one length at once: they are few and short.
    Sharded weights (FSDP) are there only for all processes together: nothing is completed.
    """
    if tokenizer is None or task_of(base_model(model)) is not Task.CAUSAL_LM or sharded():
        return ()
    prompts = list(prompts_in(rows))
    alike = {len(ids): [each for each in prompts if len(each) == len(ids)] for ids in prompts}
    with torch.no_grad(), evaluation_mode(model):
        said = {length: iter(_greedy(model, tokenizer, some)) for length, some in alike.items()}
    return tuple((_text(tokenizer, ids), _text(tokenizer, next(said[len(ids)]))) for ids in prompts)


def _greedy(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]
) -> list[list[int]]:
    """What follows on prompts of one length, which are run together."""
    ids = torch.tensor(prompts, device=next(model.parameters()).device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(NEW_TOKENS):
        best = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1].argmax(-1)
        ended |= best == tokenizer.eos_token_id
        if bool(ended.all()):
            break
        ids = torch.cat([ids, best[:, None]], dim=1)
    return [_until(tokenizer.eos_token_id, row[len(prompts[0]) :]) for row in ids.tolist()]


def _until(end: int | None, ids: list[int]) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
