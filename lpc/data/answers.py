"""Answers in tokens: texts in which spans of characters are answers, as token ids with those of the answers marked.

A text is tokenized as a whole, as the model meets it when it answers, and an answer begins with the first token that
differs from those of the text before it: a token that holds the end of a prompt and the beginning of an answer is the
answer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lpc.data.frame import TextFrame
from lpc.data.labels import IGNORED

__all__ = ["AnsweredRows", "Marked", "TokenRow", "token_rows"]


@dataclass(frozen=True)
class Marked:
    """A text, and where the answers stand in it, in characters. ``bare``: it lacks the special tokens of its ends."""

    text: str
    answers: tuple[tuple[int, int], ...]
    bare: bool

    def characters(self) -> int:
        """How many are tokenized for it."""
        return len(self.text) * (1 + len(self.answers))


@dataclass(frozen=True)
class TokenRow:
    """Token ids [tokens], int32, and which of them are an answer's [tokens]."""

    ids: NDArray[np.int32]
    is_answer: NDArray[np.bool_]

    @classmethod
    def of(cls, ids: Sequence[int], is_answer: Sequence[Any] | NDArray[np.bool_]) -> TokenRow:
        """From lists."""
        return cls(np.asarray(ids, np.int32), np.asarray(is_answer, np.bool_))


def token_rows(texts: Sequence[Marked], tokenizer: PreTrainedTokenizerBase) -> list[TokenRow]:
    """The tokens of texts.

    A bare text begins as the tokenizer begins a text (bos in front where it adds one), and has at its end, the
    answer's, what the tokenizer adds there, or else eos if there is one.
    """
    places = [place for each in texts for span in each.answers for place in _places(each, span)]
    pieces = [each.text for each in texts] + [text[:end] for text, end in places]
    # verbose=False: a text may be longer than the model's context, it is cut anyway
    encoded = tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"] if pieces else []
    before = {(text, end): ids for (text, end), ids in zip(places, encoded[len(texts) :], strict=True)}
    frame = TextFrame.of(tokenizer)
    start, eos = list(frame.opening), tokenizer.eos_token_id
    stop = list(frame.closing) or ([] if eos is None else [eos])
    return [
        _row(each, ids, before, (start, stop) if each.bare else ([], []))
        for each, ids in zip(texts, encoded[: len(texts)], strict=True)
    ]


def _places(each: Marked, span: tuple[int, int]) -> list[tuple[str, int]]:
    return [(each.text, place) for place in span if 0 < place < len(each.text)]


def _row(
    each: Marked, ids: list[int], before: dict[tuple[str, int], list[int]], ends: tuple[list[int], list[int]]
) -> TokenRow:
    marks = np.zeros(len(ids), np.bool_)
    for span in each.answers:
        begin, end = (_token(each.text, place, ids, before) for place in span)
        marks[begin:end] = True
    start, stop = ends
    last = [bool(each.answers)] * len(stop)
    return TokenRow.of([*start, *ids, *stop], [*([False] * len(start)), *marks, *last])


def _token(text: str, place: int, ids: list[int], before: dict[tuple[str, int], list[int]]) -> int:
    """How many tokens the text has in common with the text before a place."""
    if place in (0, len(text)):
        return len(ids) if place else 0
    pairs = zip(ids, before[text, place], strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(before[text, place])))


@dataclass(frozen=True)
class AnsweredRows:
    """Rows with ``input_ids`` and ``labels`` [tokens], int64, the labels -100 where there is no answer.

    ``left_out`` counts the rows that have no answer or none that fits, ``answers_cut`` those that end too early.
    """

    rows: tuple[TokenRow, ...]
    left_out: int
    answers_cut: int
    all_labels: bool

    @classmethod
    def cut(cls, rows: Iterable[TokenRow], length: int, *, all_labels: bool = False) -> AnsweredRows:
        """Rows cut to ``length`` tokens. ``all_labels``: prompts have labels as well."""
        kept, left_out, cut = [], 0, 0
        for row in rows:
            if not row.is_answer[1:length].any():  # the first token is predicted from nothing
                left_out += 1
                continue
            cut += bool(row.is_answer[length:].any())
            kept.append(TokenRow(row.ids[:length].copy(), row.is_answer[:length].copy()))
        return cls(tuple(kept), left_out, cut, all_labels)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int64]]:
        """One row."""
        row = self.rows[index]
        ids = row.ids.astype(np.int64)
        return {"input_ids": ids, "labels": ids.copy() if self.all_labels else np.where(row.is_answer, ids, IGNORED)}
