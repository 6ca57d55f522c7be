"""Data: from files, strings, a `datasets.Dataset` or token ids to blocks of equal length.

Documents are tokenized, strung together and cut into blocks that do not overlap. A list of strings is a list of files
if all of them exist, and a list of texts if none does; a `Path`, or a single string, is always a file.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lpc.data.documents import read_documents, split_documents
from passes.errors import DataError, MissingFileError, OptionError, TokenizerError

__all__ = ["BlockDataset", "Data", "TokenBlocks", "adds_bos", "split_heldout", "token_sequences"]

Data: TypeAlias = "str | Path | Sequence[str | Path] | Sequence[Sequence[int]] | torch.Tensor | datasets.Dataset"
"""What the user may hand over as data; see `token_sequences`."""

PIECE_CHARS = 250_000
"""Longer documents are tokenized in pieces cut at line ends: a tokenizer needs 200 bytes of memory a character."""

BATCH_CHARS = 4 * PIECE_CHARS
"""Characters tokenized in one call."""


@dataclass(frozen=True, kw_only=True)
class TokenBlocks:
    """Blocks of equal length and what they were cut from.

    ``tensor`` is ``[n, sequence_length]``, int64; ``tokens`` counts all tokens including separators, of which the last
    ``dropped_tokens``, too few for a block, are not in the tensor.
    """

    tensor: torch.Tensor
    documents: int
    tokens: int
    dropped_tokens: int


class BlockDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Blocks ``[n, sequence_length]`` as the transformers Trainer wants them: every token is an input and a label."""

    def __init__(self, blocks: torch.Tensor) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``labels``, both ``[sequence_length]``."""
        return {"input_ids": self._blocks[index], "labels": self._blocks[index]}


def token_sequences(
    data: Data,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    sequence_length: int,
    vocab_size: int | None = None,
) -> TokenBlocks:
    """Tokenize and pack ``data`` into blocks of ``sequence_length`` tokens.

    ``data`` is a path or paths (text, or ``.jsonl`` with a ``text`` field), a list of texts, a `datasets.Dataset` with
    a ``text`` or an ``input_ids`` column, or token-id sequences, which are strung together as they are. A text is one
    document, or several with ``<|endoftext|>`` between them. Each document begins with bos where the tokenizer adds
    it; where it does not, eos stands between documents, if there is one. ``vocab_size`` is the model's (default: the
    tokenizer's).

    Raises `MissingFileError`, `DataError` (no or too little text, wrong format), `TokenizerError` (text without a
    tokenizer, or one with more tokens than the model) and `OptionError` (``sequence_length`` below 2).
    """
    if sequence_length < 2:
        raise OptionError(f"sequence_length {sequence_length}: a sequence needs at least 2 tokens, one to predict")
    source = _source(data)
    stream = _pack_ids(source.sequences) if source.sequences else _tokenize(source.texts, tokenizer)
    limit = vocab_size if vocab_size is not None else (len(tokenizer) if tokenizer is not None else None)
    _check_vocabulary(stream, limit, from_text=not source.sequences)
    count = len(stream) // sequence_length
    if count == 0:
        raise DataError(
            f"the data has {len(stream)} tokens and one sequence needs {sequence_length}: "
            f"give more text or a shorter sequence_length{source.remark}"
        )
    used = count * sequence_length
    return TokenBlocks(
        tensor=stream[:used].reshape(count, sequence_length),
        documents=len(source.texts) or len(source.sequences),
        tokens=len(stream),
        dropped_tokens=len(stream) - used,
    )


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


@dataclass(frozen=True)
class _Source:
    """Either texts (documents) or token-id sequences; ``remark`` ends the message if they are too short."""

    texts: Sequence[str] = ()
    sequences: Sequence[Sequence[int]] = ()
    remark: str = ""


def _source(data: object) -> _Source:
    if isinstance(data, str | Path):
        return _Source(texts=_read([data]))
    if isinstance(data, datasets.Dataset):
        return _from_dataset(data)
    if isinstance(data, torch.Tensor | np.ndarray):
        data = data.tolist()
    if not isinstance(data, Sequence):
        raise DataError(
            f"data of type {type(data).__name__}: give a path, a list of paths or texts, a datasets.Dataset "
            "(one split, not streamed) or a list of token-id sequences"
        )
    if len(data) == 0:
        raise DataError("the data is an empty list")
    if all(isinstance(item, str | Path) for item in data):
        return _from_strings(data)
    return _Source(sequences=_checked_sequences(data))


def _from_strings(items: Sequence[str | Path]) -> _Source:
    # os.path.exists, not Path.exists: that one raises on a text too long for a file name
    are_files = [isinstance(item, Path) or os.path.exists(item) for item in items]
    if all(are_files):
        return _Source(texts=_read(items))
    if any(are_files):
        odd = items[are_files.index(False)]
        raise DataError(
            f"a list of strings must be all files or all texts; this one has both: {_short(odd)} is not a file"
        )
    return _Source(
        texts=_documents([str(item) for item in items]),
        remark=" (the strings were taken as texts, since none names an existing file)",
    )


def _read(paths: Sequence[str | Path]) -> list[str]:
    texts: list[str] = []
    for path in paths:
        if isinstance(path, str) and not os.path.exists(path):
            raise MissingFileError(f"no such file: {_short(path)} (to give a text, put it in a list)")
        texts += read_documents(Path(path))
    return texts


def _from_dataset(data: datasets.Dataset) -> _Source:
    if "text" in data.column_names:
        texts = list(data["text"])
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"the data set's `text` in row {row} is a {type(text).__name__}, not a string")
        return _Source(texts=_documents(texts))
    if "input_ids" in data.column_names:
        return _Source(sequences=_checked_sequences(list(data["input_ids"])))
    raise DataError(
        f"the data set has neither a `text` nor an `input_ids` column, only: {', '.join(data.column_names) or 'none'}"
    )


def _documents(texts: Iterable[str]) -> list[str]:
    documents = split_documents(texts)
    if not documents:
        raise DataError("the data holds no text: it is empty or has white space only")
    return documents


def _checked_sequences(items: Sequence[object]) -> list[Sequence[int]]:
    sequences: list[Sequence[int]] = []
    for index, item in enumerate(items):
        ids = item.tolist() if isinstance(item, torch.Tensor | np.ndarray) else item
        if not isinstance(ids, Sequence) or isinstance(ids, str):
            raise DataError(
                f"item {index} of the data is a {type(item).__name__}: a list must hold paths, texts "
                "or token-id sequences, one kind only"
            )
        if not all(isinstance(token, int | np.integer) and not isinstance(token, bool) for token in ids):
            raise DataError(f"item {index} of the data is a sequence that holds something other than token ids")
        sequences.append(ids)
    if not any(sequences):
        raise DataError("the data holds no token: every sequence is empty")
    return sequences


def _pack_ids(sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor(list(itertools.chain.from_iterable(sequences)), dtype=torch.int64)


def _tokenize(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> torch.Tensor:
    """All documents as one stream of token ids, ``[tokens]``."""
    if tokenizer is None:
        raise TokenizerError("text data needs a tokenizer: give one, or give token-id sequences as data")
    start = _document_start(tokenizer)
    chunks: list[torch.Tensor] = []
    for batch in _batches(documents):
        # verbose=False: a document may be longer than the model's context, it is cut into blocks anyway
        encoded = tokenizer([piece for piece, _ in batch], add_special_tokens=False, verbose=False)["input_ids"]
        ids = [start + piece if first else piece for piece, (_, first) in zip(encoded, batch, strict=True)]
        chunks.append(torch.tensor(list(itertools.chain.from_iterable(ids)), dtype=torch.int64))
    stream = torch.cat(chunks)
    return stream if adds_bos(tokenizer) else stream[len(start) :]


def _document_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What goes before a document: bos where the tokenizer adds it itself, else eos (not before the first one)."""
    mark = tokenizer.bos_token_id if adds_bos(tokenizer) else tokenizer.eos_token_id
    return [] if mark is None else [mark]


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts bos before a text by itself."""
    ids = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return tokenizer.bos_token_id is not None and ids != plain and ids[:1] == [tokenizer.bos_token_id]


def _batches(documents: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Batches of ``(piece, whether it begins a document)`` of about `BATCH_CHARS` characters."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        for index, piece in enumerate(_pieces(document)):
            batch.append((piece, index == 0))
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


def _check_vocabulary(stream: torch.Tensor, vocab_size: int | None, *, from_text: bool) -> None:
    if stream.numel() == 0:
        return
    lowest, highest = int(stream.min()), int(stream.max())
    if lowest < 0:
        raise DataError(f"token id {lowest}: ids are not negative (labels such as -100 are no data)")
    if vocab_size is not None and highest >= vocab_size:
        if from_text:
            raise TokenizerError(
                f"the tokenizer produced token id {highest} and the model has {vocab_size} tokens: "
                "it belongs to another model"
            )
        raise DataError(f"token id {highest} is outside the vocabulary of {vocab_size} tokens")


def _short(text: str | Path) -> str:
    shown = str(text)
    return repr(shown if len(shown) <= 60 else f"{shown[:57]}...")
