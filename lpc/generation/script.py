"""How a model's own text goes: what it begins with, and what stands where somebody ends and somebody else speaks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lpc.data import Chat, TextFrame
from passes.errors import DataError

__all__ = ["Script", "Turn"]

logger = logging.getLogger(__name__)

SAID = ("Zaqxswc one", "Zaqxswc two", "Zaqxswc three")
"""What is said in a chat of which only the rest, the template's own, is looked at."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A speaker's turn: the token that ends it, None where none does, and those of the template that follow."""

    end: int | None
    then: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Script:
    """The tokens that a text begins with, and the turns that are taken in it, over and over.

    ``barred`` are the special tokens, none of which is drawn but the one that ends the turn; ``vocabulary`` counts the
    tokens of the tokenizer, beyond which none is drawn.
    """

    opening: tuple[int, ...]
    turns: tuple[Turn, ...]
    is_chat: bool
    barred: tuple[int, ...] = ()
    vocabulary: int | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Script:
        """The chat of a tokenizer with a chat template: user and assistant in turns, both said by the model.

        Else documents, begun as the tokenizer begins a text, or by bos or eos. Raises DataError for a model without
        a tokenizer, or whose texts begin with no token.
        """
        if tokenizer is None:
            raise DataError(
                f"{type(model).__name__} came without a tokenizer, with which it would write data of its own: give "
                "data= (--data) and no share of its own (--self-data 0), or tokenizer="
            )
        if tokenizer.chat_template is not None:
            found = _chat(tokenizer)
            if found is not None:
                return found
        frame, eos = TextFrame.of(tokenizer), tokenizer.eos_token_id
        own = getattr(model.config.get_text_config(), "bos_token_id", None)
        known = [each for each in (tokenizer.bos_token_id, own, eos) if isinstance(each, int)]
        opening = frame.opening or tuple(known[:1])
        if not opening:
            raise DataError(
                "the tokenizer has neither a bos nor an eos token for text of the model's own to begin with: give "
                "data= (--data) and no share of its own (--self-data 0)"
            )
        return _script(tokenizer, opening, (_document(opening, eos),), is_chat=False)

    @property
    def marks(self) -> frozenset[int]:
        """The special tokens that tell a chat from other text; none where the template has none of its own."""
        ends = {turn.end for turn in self.turns if turn.end is not None}
        return frozenset(ends if self.is_chat and len(self.turns) > 1 else ())

    def allowed(self, width: int, device: torch.device) -> list[torch.Tensor]:
        """A turn's tokens that may be drawn, bool [width]."""
        found = []
        for turn in self.turns:
            may = torch.ones(width, dtype=torch.bool, device=device)
            may[[each for each in self.barred if each < width]] = False
            if self.vocabulary is not None:
                may[self.vocabulary :] = False
            if turn.end is not None:
                may[turn.end] = True
            found.append(may)
        return found


def _document(opening: tuple[int, ...], eos: int | None) -> Turn:
    """A document and what begins the next; an opening that is the end of a text itself stands there already."""
    return Turn(end=eos, then=() if opening == (eos,) else opening)


def _script(
    tokenizer: PreTrainedTokenizerBase, opening: tuple[int, ...], turns: tuple[Turn, ...], *, is_chat: bool
) -> Script:
    vocabulary = max(tokenizer.get_vocab().values(), default=-1) + 1 or None
    barred = tuple(sorted(each for each in _special(tokenizer) if each is not None))
    return Script(opening=opening, turns=turns, is_chat=is_chat, barred=barred, vocabulary=vocabulary)


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(index for index, token in added if token.special)}


def _chat(tokenizer: PreTrainedTokenizerBase) -> Script | None:
    """The script that a chat template makes; None, with a warning, for one that cannot be read so."""
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": said} for role, said in zip(roles, SAID, strict=True)]
    try:
        text = Chat(tokenizer).render("a chat of the model's own", messages)
        places = [text.index(said) for said in SAID]
    except (DataError, ValueError) as error:
        logger.warning("the model's own text is no chat: its chat template cannot be used (%s)", error)
        return None
    first, second = (text[at + len(said) : to] for at, said, to in zip(places, SAID, places[1:], strict=False))
    opening, asked, answered = (_tokens(tokenizer, part) for part in (text[: places[0]], first, second))
    ends = [part[0] if part else None for part in (asked, answered)]
    turns = tuple(Turn(end=end, then=part[1:]) for end, part in zip(ends, (asked, answered), strict=True))
    if not opening or not {*ends} <= _special(tokenizer):  # no token by itself ends a turn: the model writes what does
        opening = opening or TextFrame.of(tokenizer).opening
        turns = (_document(opening, tokenizer.eos_token_id),)
    return _script(tokenizer, opening, turns, is_chat=True) if opening else None


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    found: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else ()
    return tuple(found)
