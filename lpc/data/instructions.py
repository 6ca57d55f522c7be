"""Instruction data: prompts with answers, or chats, from files or memory to rows in which only answers have labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from lpc.data.answers import AnsweredRows, Marked, TokenRow, token_rows
from lpc.data.chat import Chat
from lpc.data.documents import read_jsonl
from lpc.data.rows import load_folder
from lpc.options import InstructionFormat
from passes.errors import DataError, OptionError, TokenizerError

__all__ = ["Columns", "Record", "find_columns", "instruction_rows"]

logger = logging.getLogger(__name__)

PAIRS = (("instruction", "output"), ("instruction", "response"), ("prompt", "completion"))
INPUTS = ("input", "context")
MESSAGES = "messages"
BATCH = 1000
"""Rows that are tokenized in one call."""

Record = tuple[str, Mapping[str, Any]]
"""Where a row stands, for messages, and the row."""


@dataclass(frozen=True)
class Columns:
    """Where prompt and answer stand: ``messages`` alone, or a prompt and an answer, and an input if there is one."""

    prompt: str
    answer: str | None = None
    context: str | None = None

    @classmethod
    def of(cls, names: Iterable[str]) -> Columns | None:
        """The columns among the names of a row; None if they are not those of instruction data."""
        names = set(names)
        for prompt, answer in PAIRS:
            if {prompt, answer} <= names:
                context = next((name for name in INPUTS if name in names), None) if prompt == "instruction" else None
                return cls(prompt, answer, context)
        return cls(MESSAGES) if MESSAGES in names else None

    def texts(self, where: str, row: Mapping[str, Any]) -> tuple[str, str, str]:
        """Prompt, input and answer of a row. Raises DataError for what is no text."""
        found = []
        for name in (self.prompt, self.context, self.answer):
            value = "" if name is None or (name == self.context and row.get(name) is None) else row.get(name)
            if not isinstance(value, str):
                kind = "missing" if name not in row else f"a {type(value).__name__}, not a string"
                raise DataError(f"{where}: `{name}` is {kind}")
            found.append(value)
        return found[0], found[1], found[2]


def find_columns(data: object, given: InstructionFormat | None) -> Columns | None:
    """The columns of instruction data, by the first row; None for data of another kind.

    Rows with ``input_ids`` are the model's own inputs, and rows with a ``text`` are text, unless a format is
    ``given``. Raises DataError if it is and the data have no such columns.
    """
    first = next(_records(data), None)
    names = list(first[1]) if first is not None and isinstance(first[1], Mapping) else []
    columns = None if "input_ids" in names else Columns.of(names)
    if columns is None and given is not None:
        pairs = ", ".join(f"{prompt} and {answer}" for prompt, answer in PAIRS)
        raise DataError(
            f"instruction data have the columns {pairs}, or {MESSAGES}, in a .jsonl file, a list of dicts or a data "
            f"set; found: {', '.join(names) or 'none'}"
        )
    if columns is not None and given is None and "text" in names:
        logger.warning(
            "the data have `text` beside %s and are read as text: give DataOptions(instructions=InstructionFormat()) "
            "to tune on the answers alone",
            columns.prompt,
        )
        return None
    return columns


def instruction_rows(
    data: object,
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
    if row_format.template is not None and columns.prompt != "instruction":
        raise OptionError(f"the template is for an `instruction` column, and the data have `{columns.prompt}`")
    if columns.answer is not None and tokenizer.eos_token_id is None:
        logger.warning("the tokenizer has no eos token: the model is not taught where an answer ends")
    encoded = _encode(data, columns, tokenizer, row_format)
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
        raise DataError(f"no row has an answer within sequence_length {length}: raise it, or check the columns")
    return rows


def _encode(
    data: object, columns: Columns, tokenizer: PreTrainedTokenizerBase, row_format: InstructionFormat
) -> Iterator[TokenRow]:
    records = _records(data)
    chat = Chat(tokenizer) if columns.answer is None else None
    while batch := list(islice(records, BATCH)):
        if chat is not None:
            yield from chat.rows([(where, _mapping(where, row).get(MESSAGES)) for where, row in batch])
        else:
            yield from token_rows([_pair(where, row, columns, row_format) for where, row in batch], tokenizer)


def _pair(where: str, row: Mapping[str, Any], columns: Columns, row_format: InstructionFormat) -> Marked:
    prompt, context, answer = columns.texts(where, _mapping(where, row))
    if columns.prompt == "instruction":
        try:
            prompt = row_format.prompt(prompt, context)
        except DataError as error:
            raise DataError(f"{where} {error}") from None
    spans = ((len(prompt), len(prompt) + len(answer)),) if answer else ()
    return Marked(prompt + answer, spans, bare=True)


def _mapping(where: str, row: object) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is a {type(row).__name__}, not a dict")
    return row


def _records(data: object) -> Iterator[Record]:
    """The rows of files, of data sets and of lists; nothing where there are none, as in a text."""
    if isinstance(data, str | Path):
        data = [data]
    if isinstance(data, list | tuple) and data and all(isinstance(item, str | Path) for item in data):
        if all(_is_record_file(item) for item in data):
            for item in data:
                yield from _read(Path(item))
    elif isinstance(data, datasets.Dataset | list | tuple):
        yield from _numbered(data)
    elif isinstance(data, torch.utils.data.Dataset) and hasattr(data, "__len__"):
        yield from _numbered(data[index] for index in range(len(data)))


def _numbered(rows: Iterable[Any], what: str = "the data") -> Iterator[Record]:
    return ((f"row {index} of {what}", row) for index, row in enumerate(rows))


def _is_record_file(path: str | Path) -> bool:
    # os.path.isfile, not Path.is_file: that one raises on a text too long for a file name
    name = str(path)
    return (name.lower().endswith(".jsonl") and os.path.isfile(name)) or os.path.isfile(f"{name}/dataset_info.json")


def _read(path: Path) -> Iterator[Record]:
    if path.is_dir():
        yield from _numbered(load_folder(path), str(path))
    else:
        for number, row in read_jsonl(path):
            yield f"{path}, line {number}", row
