"""Text and token ids to blocks of equal length.

Documents are tokenized, strung together and cut into blocks that do not overlap, each of which begins as the tokenizer
begins a text.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lpc.data.documents import listed, split_documents
from lpc.data.frame import TextFrame, check_size, highest_id
from lpc.data.labels import IGNORED, LABEL_ALIASES
from lpc.data.records import Records, open_records
from passes.errors import DataError, OptionError, TokenizerError

if TYPE_CHECKING:
    import datasets

__all__ = [
    "BlockDataset",
    "Data",
    "TokenBlocks",
    "id_blocks",
    "is_ids",
    "is_text",
    "split_heldout",
    "text_blocks",
    "token_sequences",
]

Data: TypeAlias = "str | Path | Sequence[str | Path] | Sequence[Sequence[int]] | torch.Tensor | datasets.Dataset"
"""What the user may hand over as data; see `token_sequences` and `lpc.records`."""

logger = logging.getLogger(__name__)

UNREAD = ("position_ids", "token_type_ids")
"""Columns that a model takes, but that do not fit tokens that are strung together."""

PIECE_CHARS = 250_000
"""Longer documents are tokenized in pieces cut at line ends: a tokenizer needs 200 bytes of memory a character."""

BATCH_CHARS = 4 * PIECE_CHARS
"""Characters tokenized in one call."""


@dataclass(frozen=True, kw_only=True)
class TokenBlocks:
    """Blocks of equal length and what they were cut from.

    ``tensor`` is ``[n, sequence_length]``, int64; ``tokens`` counts all tokens of the documents and those around them,
    of which the last ``dropped_tokens``, too few for a block, are not in the tensor. What a block that begins inside a
    document gets in front is not counted.

    ``labels`` are the tokens, but -100 for what such a block got in front and for the first token behind it: that no
    document begins with it, so nothing is learnt or measured by it.
    """

    tensor: torch.Tensor
    labels: torch.Tensor
    documents: int
    tokens: int
    dropped_tokens: int


class BlockDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Blocks ``[n, sequence_length]`` as the transformers Trainer wants them; without labels every token is one."""

    def __init__(self, blocks: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        self.blocks, self.labels = blocks, blocks if labels is None else labels

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``labels``, both ``[sequence_length]``."""
        return {"input_ids": self.blocks[index], "labels": self.labels[index]}


def token_sequences(
    data: Data,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    sequence_length: int,
    vocab_size: int | None = None,
) -> TokenBlocks:
    """Tokenize and pack ``data`` into blocks of ``sequence_length`` tokens.

    ``data`` is a path or paths (text, or ``.jsonl`` with a ``text`` field), a list of texts, a `datasets.Dataset` with
    a ``text`` or an ``input_ids`` column, or token-id sequences. ``vocab_size`` is the model's (default: the
    tokenizer's). See `text_blocks` and `id_blocks`.

    Raises `MissingFileError`, `DataError` (no or too little text, wrong format), `TokenizerError` (text without a
    tokenizer, or one with more tokens than the model) and `OptionError` (a ``sequence_length`` without room for a
    token to predict).
    """
    records = open_records(data)
    read = text_blocks if is_text(records.first) else id_blocks
    return read(records, tokenizer, sequence_length=sequence_length, vocab_size=vocab_size)


def is_text(first: object) -> bool:
    """Whether records are texts, by the first of them."""
    return isinstance(first, str) or (isinstance(first, Mapping) and "text" in first)


def is_ids(first: object) -> bool:
    """Whether records are sequences of token ids without labels, by the first of them."""
    if isinstance(first, Mapping):
        return "input_ids" in first and not {"labels", *LABEL_ALIASES} & set(first)
    return isinstance(first, Sequence | torch.Tensor | np.ndarray) and not isinstance(first, str | bytes)


def text_blocks(
    records: Records, tokenizer: PreTrainedTokenizerBase | None, *, sequence_length: int, vocab_size: int | None = None
) -> TokenBlocks:
    """Blocks of texts.

    A text is one document, or several with ``<|endoftext|>`` between them. Documents and blocks begin as the tokenizer
    begins a text, and documents end as it ends one; where it does neither, eos stands between documents, if there is
    one. Raises what `token_sequences` raises.
    """
    if tokenizer is None:
        raise TokenizerError("text data needs a tokenizer: give one, or give token-id sequences as data")
    if vocab_size is not None:
        check_size(tokenizer, vocab_size)
    documents = split_documents(records.texts("text"))
    if not documents:
        raise DataError(f"{records.name} holds no text: it is empty or has white space only")
    frame = TextFrame.of(tokenizer)
    stream = _tokenize(documents, tokenizer, frame)
    return _blocks(stream, len(documents), frame, sequence_length, records)


def id_blocks(
    records: Records, tokenizer: PreTrainedTokenizerBase | None, *, sequence_length: int, vocab_size: int | None = None
) -> TokenBlocks:
    """Blocks of token ids, which are strung together as they are; each block begins as the tokenizer begins a text.

    Raises what `token_sequences` raises.
    """
    if isinstance(records.first, Mapping) and "input_ids" not in records.first:
        held = listed(records.first)
        raise DataError(f"{records.where(0)}: no `text` field (it has: {held}), and no `input_ids`")
    sequences = [_ids(records.where(index), item) for index, item in enumerate(records.column("input_ids"))]
    if isinstance(records.first, Mapping) and "attention_mask" in records.first:
        masks = enumerate(zip(records.column("attention_mask"), sequences, strict=True))
        sequences = [_unpadded(records.where(index), mask, sequence) for index, (mask, sequence) in masks]
    unread = [name for name in UNREAD if isinstance(records.first, Mapping) and name in records.first]
    if unread:
        logger.warning(
            "%s: tokens are strung together into blocks, so their %s do not count", records.name, listed(unread)
        )
    if not any(len(sequence) for sequence in sequences):
        raise DataError(f"{records.name} holds no token: every sequence is empty")
    size = vocab_size if tokenizer is None or vocab_size is not None else highest_id(tokenizer) + 1
    for index, sequence in enumerate(sequences):
        _check_ids(records.where(index), sequence, size)
    frame = TextFrame() if tokenizer is None else TextFrame.of(tokenizer)
    return _blocks(torch.cat(sequences), len(sequences), frame, sequence_length, records)


def _blocks(stream: torch.Tensor, documents: int, frame: TextFrame, length: int, records: Records) -> TokenBlocks:
    least = len(frame.opening) + 2
    if length < least:
        raise OptionError(
            f"sequence_length {length}: a sequence needs at least {least} tokens, one to predict, one before it, and "
            f"{len(frame.opening)} with which the tokenizer begins a text"
        )
    rows, continued, end = _cut(stream, frame.opening, length)
    if not rows:
        raise DataError(
            f"{records.name} has {len(stream)} tokens and one sequence needs {length}: "
            f"give more text or a shorter sequence_length{records.remark}"
        )
    blocks = torch.stack(rows)
    labels = blocks.clone()
    labels[torch.tensor(continued), : len(frame.opening) + 1] = IGNORED
    dropped = len(stream) - end
    return TokenBlocks(tensor=blocks, labels=labels, documents=documents, tokens=len(stream), dropped_tokens=dropped)


def _cut(stream: torch.Tensor, opening: tuple[int, ...], length: int) -> tuple[list[torch.Tensor], list[bool], int]:
    """Blocks that all begin with ``opening``, which of them got one, and where in the stream the last one ends.

    A block that begins where a document does has the document's opening. A cut inside an opening goes back to its
    beginning.
    """
    first = torch.tensor(opening, dtype=torch.int64)
    rows: list[torch.Tensor] = []
    continued: list[bool] = []
    end = 0
    while True:
        begin = next((at for at in range(end, end - len(opening), -1) if _stands(first, stream, at)), end)
        continues = len(opening) > 0 and not _stands(first, stream, begin)
        stop = begin + length - len(opening) * continues
        if stop > len(stream):
            return rows, continued, end
        rows.append(torch.cat([first, stream[begin:stop]]) if continues else stream[begin:stop])
        continued.append(continues)
        end = stop


def _stands(opening: torch.Tensor, stream: torch.Tensor, at: int) -> bool:
    return at >= 0 and torch.equal(stream[at : at + len(opening)], opening)


def split_heldout(blocks: torch.Tensor, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``(train, heldout)``: the held-out share is the end of the stream in one run, at least one block on each side.

    Views of ``blocks`` ``[n, sequence_length]``, in order. Raises `OptionError` for a fraction outside (0, 1) and
    `DataError` where there is only one block.
    """
    if not 0 < fraction < 1:
        raise OptionError(f"held-out fraction {fraction}: it must lie between 0 and 1")
    if len(blocks) < 2:
        raise DataError(f"{len(blocks)} sequence cannot be split into train and held-out: give more text")
    heldout = min(max(1, round(len(blocks) * fraction)), len(blocks) - 1)
    train, rest = blocks[:-heldout], blocks[-heldout:]
    assert len(train) + len(rest) == len(blocks), "no held-out block is tuned on or scored"
    return train, rest


def _ids(where: str, item: object) -> torch.Tensor:
    """One sequence of token ids, ``[tokens]``, int64."""
    if isinstance(item, torch.Tensor | np.ndarray):
        item = item.tolist()
    if not isinstance(item, Sequence) or isinstance(item, str | bytes):
        raise DataError(
            f"{where} is a {type(item).__name__}: data must be paths, texts, rows or token-id sequences, one kind only"
        )
    if not all(isinstance(token, int | np.integer) and not isinstance(token, bool) for token in item):
        raise DataError(f"{where} is a sequence that holds something other than token ids")
    try:
        return torch.tensor(item, dtype=torch.int64)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise DataError(f"{where} holds a number that is no token id: it is beyond 64 bits") from error


def _unpadded(where: str, mask: object, sequence: torch.Tensor) -> torch.Tensor:
    """The tokens of a row that its ``attention_mask`` lets through: padding is no data. Raises DataError."""
    try:
        said = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: its attention_mask holds something other than numbers") from error
    if said.shape != sequence.shape or not bool(((said == 0) | (said == 1)).all()):
        raise DataError(f"{where}: its attention_mask is not a 0 or 1 for each of the {len(sequence)} input_ids")
    return sequence[said.bool()]


def _check_ids(where: str, ids: torch.Tensor, vocab_size: int | None) -> None:
    if ids.numel() == 0:
        return
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0:
        raise DataError(f"{where} has token id {lowest}: ids are not negative (labels such as -100 are no data)")
    if vocab_size is not None and highest >= vocab_size:
        raise DataError(f"{where}: token id {highest} is outside the vocabulary of {vocab_size} tokens")


def _tokenize(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, frame: TextFrame) -> torch.Tensor:
    """All documents as one stream of token ids, ``[tokens]``."""
    framed = bool(frame.opening or frame.closing)
    between = [] if framed or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    before, after = [*frame.opening, *between], list(frame.closing)
    chunks: list[torch.Tensor] = []
    for batch in _batches(documents):
        # verbose=False: a document may be longer than the model's context, it is cut into blocks anyway
        texts = [piece.text for piece in batch]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [
            before * piece.begins + list(piece_ids) + after * piece.ends
            for piece, piece_ids in zip(batch, encoded, strict=True)
        ]
        chunks.append(torch.tensor(list(itertools.chain.from_iterable(ids)), dtype=torch.int64))
    return torch.cat(chunks)[len(between) :]


@dataclass(frozen=True)
class _Piece:
    text: str
    begins: bool
    ends: bool


def _batches(documents: Iterable[str]) -> Iterator[list[_Piece]]:
    """Batches of pieces of about `BATCH_CHARS` characters; a piece knows whether it begins or ends a document."""
    batch: list[_Piece] = []
    size = 0
    for document in documents:
        pieces = list(_pieces(document))
        for index, piece in enumerate(pieces):
            batch.append(_Piece(piece, index == 0, index == len(pieces) - 1))
            size += len(piece)
            if size >= BATCH_CHARS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _pieces(document: str) -> Iterator[str]:
    """Cut a long document after a line end (else before a blank, else anywhere) about every `PIECE_CHARS` characters.

    At most one token a seam differs from tokenizing the document at once.
    """
    begin = 0
    while len(document) - begin > PIECE_CHARS:
        end = document.rfind("\n", begin, begin + PIECE_CHARS) + 1
        if end <= begin:
            end = document.rfind(" ", begin + 1, begin + PIECE_CHARS)
        if end <= begin:
            end = begin + PIECE_CHARS
        yield document[begin:end]
        begin = end
    yield document[begin:]
