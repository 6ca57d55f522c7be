"""What data are, decided once: a closed set of readers, of which the first that takes the first record reads them all.

A reader gives blocks of tokens, sentences, or rows with the model's inputs and labels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from transformers import PreTrainedTokenizerBase

from lpc.data.documents import listed
from lpc.data.instructions import CHATS, PAIRS, Columns, instruction_rows
from lpc.data.labels import LABEL_ALIASES
from lpc.data.records import Records, open_records
from lpc.data.rows import RowFormat, Rows, rows_of
from lpc.data.sentences import Sentences, sentences_of
from lpc.data.text import TokenBlocks, id_blocks, is_ids, is_text, text_blocks
from lpc.options import InstructionFormat
from passes.errors import DataError, OptionError
from passes.models import Task

__all__ = ["Reader", "Reading", "read_data", "reader_of"]

logger = logging.getLogger(__name__)

TEXT_LENGTH = 256
INSTRUCTION_LENGTH = 512
"""Default lengths of a sequence of text and of the longest row of instructions, in tokens."""

ROW_NAMES = frozenset({"input_ids", "inputs_embeds", "labels", *LABEL_ALIASES})
"""What a causal language model's own rows have some of."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What data are read for: the rows of a model, its tokenizer, and what the user says of them.

    ``sequence_length`` in tokens, None for the default of a reader.
    """

    rows: RowFormat
    tokenizer: PreTrainedTokenizerBase | None = None
    sequence_length: int | None = None
    instructions: InstructionFormat | None = None

    def __post_init__(self) -> None:
        if not self.is_causal and self.instructions is not None:
            raise OptionError(f"instructions are for causal language models, and this is a model for {self.rows.task}")

    @property
    def is_causal(self) -> bool:
        """Whether the model is a causal language model, the only kind that takes chats and instructions."""
        return self.rows.task is Task.CAUSAL_LM

    @property
    def embeds(self) -> bool:
        """Whether the model is an embedding model, which takes texts one by one."""
        return self.rows.task is Task.FEATURE_EXTRACTION

    def length(self, default: int) -> int:
        """The length of a sequence in tokens. Raises OptionError for one beyond the model's context."""
        wanted, context = self.sequence_length, self.rows.context
        if wanted is not None and context is not None and wanted > context:
            raise OptionError(f"sequence_length {wanted} is longer than the model's context of {context} tokens")
        return wanted or min(default, context or default)


Read: TypeAlias = "TokenBlocks | Rows | Sentences"


@dataclass(frozen=True)
class Reader:
    """One way to read data: which first records it takes, and what it makes of all of them."""

    name: str
    takes: Callable[[object, Reading], bool]
    read: Callable[[Records, Reading], Read]


def read_data(data: object, reading: Reading) -> Read:
    """Open data and read them with their reader. Raises DataError, MissingFileError, OptionError, TokenizerError."""
    records = open_records(data)
    return reader_of(records, reading).read(records, reading)


def reader_of(records: Records, reading: Reading) -> Reader:
    """The reader of records. Raises DataError if none takes the first, or it is no instruction and such are asked for.

    For a causal language model, rows with ``input_ids`` are the model's own, or token ids if they have no labels; rows
    with a ``text`` are text, unless ``reading`` has a format of instructions.
    """
    first = records.first
    found = next((reader for reader in READERS if reader.takes(first, reading)), None)
    names = listed(first) if isinstance(first, Mapping) else "none"
    pairs = ", ".join(f"{prompt} and {answer}" for prompt, answer in PAIRS)
    if reading.instructions is not None and found is not INSTRUCTIONS:
        raise DataError(
            f"{records.where(0)}: instruction data have the columns {pairs}, or {' or '.join(CHATS)}, in a .jsonl "
            f"file, a list of dicts or a data set; found: {names}"
        )
    if found is None:
        raise DataError(
            f"{records.where(0)} is a {type(first).__name__} with the columns {names}: {reading.rows.model} reads text "
            f"(`text`), token ids (`input_ids`), rows (its inputs and labels), instructions ({pairs}) and chats "
            f"({', '.join(CHATS)})"
        )
    return found


def _is_text(first: object, reading: Reading) -> bool:
    return reading.is_causal and is_text(first) and reading.instructions is None


def _is_sentences(first: object, reading: Reading) -> bool:
    return reading.embeds and is_text(first)


def _is_instructions(first: object, reading: Reading) -> bool:
    is_tokens = isinstance(first, Mapping) and "input_ids" in first
    return reading.is_causal and not is_tokens and Columns.of(first) is not None


def _is_ids(first: object, reading: Reading) -> bool:
    return reading.is_causal and is_ids(first)


def _is_rows(first: object, reading: Reading) -> bool:
    named = isinstance(first, Mapping) and not ROW_NAMES.isdisjoint(first)
    return named or not reading.is_causal


def _text(records: Records, reading: Reading) -> TokenBlocks:
    columns = Columns.of(records.first)
    if columns is not None:
        logger.warning(
            "the data have `text` beside %s and are read as text: give DataOptions(instructions=InstructionFormat()) "
            "to tune on the answers alone",
            columns.prompt,
        )
    length, vocabulary = reading.length(TEXT_LENGTH), reading.rows.vocabulary
    return text_blocks(records, reading.tokenizer, sequence_length=length, vocab_size=vocabulary)


def _sentences(records: Records, reading: Reading) -> Sentences:
    return sentences_of(records, reading.tokenizer, reading.rows, reading.length(TEXT_LENGTH))


def _ids(records: Records, reading: Reading) -> TokenBlocks:
    length, vocabulary = reading.length(TEXT_LENGTH), reading.rows.vocabulary
    return id_blocks(records, reading.tokenizer, sequence_length=length, vocab_size=vocabulary)


def _instructions(records: Records, reading: Reading) -> Rows:
    columns = Columns.of(records.first)
    assert columns is not None
    answered = instruction_rows(
        records,
        columns,
        reading.tokenizer,
        row_format=reading.instructions or InstructionFormat(),
        length=reading.length(INSTRUCTION_LENGTH),
    )
    return rows_of(Records(source=answered), reading.rows)


def _rows(records: Records, reading: Reading) -> Rows:
    if reading.sequence_length is not None:
        raise OptionError("sequence_length is for text, and the data are rows: leave it out, rows keep their length")
    return rows_of(records, reading.rows)


TEXT = Reader("text", _is_text, _text)
SENTENCES = Reader("sentences", _is_sentences, _sentences)
INSTRUCTIONS = Reader("instructions", _is_instructions, _instructions)
IDS = Reader("token ids", _is_ids, _ids)
ROWS = Reader("rows", _is_rows, _rows)

READERS = (TEXT, SENTENCES, INSTRUCTIONS, IDS, ROWS)
"""All of them, in the order in which they are asked."""
