"""What a model answers to a fixed set of prompts, greedily: what a perplexity does not show of an instruction model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lpc.data import Chat, TextFrame
from passes.errors import DataError, OptionError, TokenizerError
from passes.models import base_model, evaluation_mode, generated

__all__ = ["REPLY_TOKENS", "Replies", "RepliesCompared", "Reply", "check_asked", "fixed_prompts", "replies"]

REPLY_TOKENS = 64
RUN = 3
"""Tokens in a row that count as said before if they were."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A greedy answer: its ``text`` without special tokens, of so many ``tokens``.

    ``ended``: the model ended it by itself. ``repeated`` is the share of its runs of three tokens that stand in it
    before, 0 to 1.
    """

    prompt: str
    text: str
    tokens: int
    ended: bool
    repeated: float


@dataclass(frozen=True, kw_only=True)
class Replies:
    """The answers of one model, in the order of the prompts."""

    given: tuple[Reply, ...]


@dataclass(frozen=True, kw_only=True)
class RepliesCompared:
    """The answers of the dense and the pruned model to the same prompts, and how they differ in the mean.

    ``same`` counts the pruned model's that are the dense one's, letter for letter.
    """

    dense: tuple[Reply, ...]
    pruned: tuple[Reply, ...]
    same: int
    dense_tokens: float
    pruned_tokens: float
    dense_ended: int
    pruned_ended: int
    dense_repeated: float
    pruned_repeated: float

    @classmethod
    def of(cls, dense: Replies, pruned: Replies) -> RepliesCompared:
        """Two models' answers to the same prompts, at least one."""
        pairs = zip(dense.given, pruned.given, strict=True)
        return cls(
            dense=dense.given,
            pruned=pruned.given,
            same=sum(first.text == second.text for first, second in pairs),
            dense_tokens=_mean([each.tokens for each in dense.given]),
            pruned_tokens=_mean([each.tokens for each in pruned.given]),
            dense_ended=sum(each.ended for each in dense.given),
            pruned_ended=sum(each.ended for each in pruned.given),
            dense_repeated=_mean([each.repeated for each in dense.given]),
            pruned_repeated=_mean([each.repeated for each in pruned.given]),
        )


@cache
def fixed_prompts() -> tuple[str, ...]:
    """The prompts that every instruction model is asked."""
    return tuple((files("lpc") / "assets" / "prompts.txt").read_text(encoding="utf-8").splitlines())


def check_asked(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise what ``replies`` would raise for a tokenizer: TokenizerError, DataError."""
    _ends(model, tokenizer)
    _begun(tokenizer, fixed_prompts()[0])


def replies(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | None = None,
    *,
    tokens: int = REPLY_TOKENS,
) -> Replies:
    """What a model says to prompts (default: ``fixed_prompts``), each at most so many tokens, all in one batch.

    A prompt is a user's turn by the chat template, or without one the beginning of a text. Raises TokenizerError for
    a tokenizer without any token that could pad or end, DataError if the template refuses a prompt, OptionError.
    """
    asked = fixed_prompts() if prompts is None else tuple(prompts)
    if not asked:
        raise OptionError("prompts is empty: give at least one")
    rows, ends = [_begun(tokenizer, each) for each in asked], _ends(model, tokenizer)
    width = max(map(len, rows))
    device = next(model.parameters()).device
    ids = torch.tensor([[ends[0]] * (width - len(row)) + row for row in rows], device=device)
    attended = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    settings = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, use_cache=True, eos_token_id=list(ends), pad_token_id=ends[0]
    )
    with evaluation_mode(model):
        found = generated(base_model(model), {"input_ids": ids, "attention_mask": attended}, settings)
    said = found[:, width:].tolist()
    return Replies(given=tuple(_reply(tokenizer, each, row, ends) for each, row in zip(asked, said, strict=True)))


def _begun(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The tokens before the answer."""
    if tokenizer.chat_template is None:
        return [*TextFrame.of(tokenizer).opening, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    asked = [{"role": "user", "content": prompt}]
    text = Chat(tokenizer).render("a fixed prompt", asked, add_generation_prompt=True)
    found = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not found:
        raise DataError("the tokenizer's chat template writes nothing of a prompt: correct it, or remove it")
    return found


def _ends(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens by which an answer ends."""
    config = base_model(model).generation_config
    own = config.eos_token_id if config is not None else None
    named = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    found = tuple(dict.fromkeys(each for each in named if isinstance(each, int)))
    if not found:
        raise TokenizerError("neither the model nor its tokenizer has an eos token, by which answers end: set one")
    return found


def _reply(tokenizer: PreTrainedTokenizerBase, prompt: str, said: list[int], ends: tuple[int, ...]) -> Reply:
    length = next((place for place, token in enumerate(said) if token in ends), len(said))
    tokens = said[:length]
    text = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    return Reply(prompt=prompt, text=text, tokens=length, ended=length < len(said), repeated=repeated(tokens))


def repeated(tokens: Sequence[int]) -> float:
    """The share of the runs of three tokens that stand there before."""
    runs = [tuple(tokens[at : at + RUN]) for at in range(len(tokens) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
