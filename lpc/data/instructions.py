"""Instruction data: prompts with answers, or chats, from files or memory to rows in which only answers have labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from lpc.data.answers import AnsweredRows, Marked, TokenRow, token_rows
from lpc.data.chat import Chat, Turns
from lpc.data.documents import checked_text, listed
from lpc.data.messages import is_conversation, messages_of
from lpc.data.records import Records
from lpc.options import InstructionFormat
from passes.errors import DataError, OptionError, TokenizerError

__all__ = ["CHATS", "PAIRS", "Columns", "instruction_rows"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

PAIRS = (("instruction", "output"), ("instruction", "response"), ("prompt", "completion"), ("prompt", "chosen"))
INPUTS = ("input", "context")
CHATS = ("messages", "conversations")
REJECTED = "rejected"
BATCH = 1000
"""Rows that are tokenized in one call, unless they are long."""

BATCH_CHARS = 1_000_000
"""Characters that are tokenized in one call, and the most that one row may have: a tokenizer needs 200 bytes each."""


@dataclass(frozen=True)
class Columns:
    """Where prompt and answer stand: a chat alone, or a prompt and an answer, and an input if there is one.

    ``is_chat``: the columns hold lists of messages.
    """

    prompt: str
    answer: str | None = None
    context: str | None = None
    is_chat: bool = False

    @classmethod
    def of(cls, first: object) -> Columns | None:
        """The columns of data, by the first row; None if it is not one of instruction data."""
        if not isinstance(first, Mapping):
            return None
        if is_conversation(first.get("chosen")) and not is_conversation(first.get("prompt")):
            return cls("chosen", is_chat=True)  # the whole chat, which begins with the prompt
        for prompt, answer in PAIRS:
            if prompt in first and answer in first:
                context = next((name for name in INPUTS if name in first), None) if prompt == "instruction" else None
                is_chat = prompt == "prompt" and any(is_conversation(first[name]) for name in (prompt, answer))
                return cls(prompt, answer, context, is_chat)
        return next((cls(name, is_chat=True) for name in CHATS if name in first), None)

    def texts(self, where: str, row: Mapping[str, Any]) -> tuple[str, str, str]:
        """Prompt, input and answer of a row. Raises DataError for what is no text."""
        context = None if self.context is None else row.get(self.context)
        given = "" if context is None or self.context is None else checked_text(where, self.context, context)
        prompt, answer = (
            checked_text(where, name, _field(where, row, name)) for name in (self.prompt, self.answer or "")
        )
        return prompt, given, answer

    def turns(self, where: str, row: Mapping[str, Any], template: str) -> Turns:
        """The chat of a row. Raises DataError."""
        names = [self.prompt] if self.answer is None else [self.prompt, self.answer]
        parts = [messages_of(where, name, _field(where, row, name), template) for name in names]
        turns = Turns(where, [message for part in parts for message in part], len(parts[0]) * (len(parts) - 1))
        _check_length(where, sum(len(message["content"]) for message in turns.messages))
        return turns


def _field(where: str, row: Mapping[str, Any], name: str) -> object:
    if name not in row:
        raise DataError(f"{where}: `{name}` is missing (it has: {listed(row)})")
    return row[name]


def instruction_rows(
    records: Records,
    columns: Columns,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    row_format: InstructionFormat,
    length: int,
) -> AnsweredRows:
    """Rows of at most ``length`` tokens: a longer answer is cut at its end.

    Rows of which no answer is left are left out; a warning counts both. Raises DataError (a row that lacks a column, a
    chat that the template refuses, no row left), TokenizerError (no tokenizer or chat template), OptionError (a
    template for data that need none).
    """
    if tokenizer is None:
        raise TokenizerError("instruction data need a tokenizer: give one, or rows with input_ids and labels")
    if REJECTED in records.first:
        logger.warning("the data are preferences: `chosen` is what is learnt, `%s` is not read", REJECTED)
    if row_format.template is not None and columns.prompt != "instruction":
        raise OptionError(f"the template is for an `instruction` column, and the data have `{columns.prompt}`")
    if not columns.is_chat and tokenizer.eos_token_id is None:
        logger.warning("the tokenizer has no eos token: the model is not taught where an answer ends")
    encoded = _encode(records, columns, tokenizer, row_format)
    rows = AnsweredRows.cut(encoded, length, all_labels=not row_format.mask_prompt)
    if rows.left_out or rows.answers_cut:
        logger.warning(
            "%d of %d rows are left out: they have no answer, or none of it fits into sequence_length %d; "
            "of %d more the end is cut off",
            rows.left_out,
            rows.left_out + len(rows),
            length,
            rows.answers_cut,
        )
    if len(rows) == 0:
        raise DataError(
            f"{records.name}: no row has an answer within sequence_length {length}: raise it, or check the columns"
        )
    return rows


def _encode(
    records: Records, columns: Columns, tokenizer: PreTrainedTokenizerBase, row_format: InstructionFormat
) -> Iterator[TokenRow]:
    rows = (_desired(records.where(index), records.mapping(index)) for index in range(len(records)))
    if columns.is_chat:
        chat = Chat(tokenizer)
        for chats in _batches((columns.turns(where, row, chat.template) for where, row in rows), Turns.characters):
            yield from chat.rows(chats)
    else:
        for pairs in _batches((_pair(where, row, columns, row_format) for where, row in rows), Marked.characters):
            yield from token_rows(pairs, tokenizer)


def _desired(where: str, row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The place and the row. Raises DataError for one that says itself that its answer is not to be learnt (KTO)."""
    if row.get("label") is False:
        raise DataError(f"{where}: `label` is false, so its answer is none to learn: leave such rows out")
    return where, row


def _batches(items: Iterable[T], characters: Callable[[T], int]) -> Iterator[list[T]]:
    """Batches of at most `BATCH` items, and of one item more than `BATCH_CHARS` characters."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += characters(item)
        if size >= BATCH_CHARS or len(batch) == BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pair(where: str, row: Mapping[str, Any], columns: Columns, row_format: InstructionFormat) -> Marked:
    prompt, context, answer = columns.texts(where, row)
    if columns.prompt == "instruction":
        try:
            prompt = row_format.prompt(prompt, context)
        except DataError as error:
            raise DataError(f"{where} {error}") from None
    _check_length(where, len(prompt) + len(answer))
    spans = ((len(prompt), len(prompt) + len(answer)),) if answer else ()
    return Marked(prompt + answer, spans, bare=True)


def _check_length(where: str, characters: int) -> None:
    if characters > BATCH_CHARS:
        raise DataError(f"{where} has {characters} characters, and a row at most {BATCH_CHARS}: split it, or give text")
