"""Sentences: texts one by one, for embedding models, whose labels the dense model itself gives."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from lpc.data.documents import split_documents
from lpc.data.frame import check_size
from lpc.data.records import Records
from lpc.data.rows import Row, RowFormat
from passes.errors import DataError, TokenizerError

__all__ = ["Sentences", "sentences_of"]

logger = logging.getLogger(__name__)

AT_ONCE = 4096
"""Texts that are tokenized in one call."""


class Sentences(torch.utils.data.Dataset[Row]):
    """The tokens of texts, of any length each; with ``labels``, the dense model's vectors, once these are filled in."""

    def __init__(self, tokens: Sequence[torch.Tensor], row_format: RowFormat) -> None:
        self.tokens, self.format = tokens, row_format
        self._vectors: torch.Tensor | None = None

    def fill(self, vectors: torch.Tensor) -> None:
        """The dense model's vectors, ``[texts, width]``, in order."""
        self._vectors = vectors

    @property
    def vectors(self) -> torch.Tensor:
        """The dense model's vectors, ``[texts, width]``."""
        if self._vectors is None:
            raise RuntimeError(
                "the dense model's vectors are not there yet: EmbedPass comes before all that reads data"
            )
        return self._vectors

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.tokens)

    def __getitem__(self, index: int) -> Row:
        """``input_ids [tokens]`` and ``labels [width]``."""
        return {"input_ids": self.tokens[index], "labels": self.vectors[index]}

    def subset(self, indices: Sequence[int]) -> Sentences:
        """The texts at some indices."""
        return Sentences([self.tokens[index] for index in indices], self.format)


def sentences_of(
    records: Records, tokenizer: PreTrainedTokenizerBase | None, row_format: RowFormat, length: int
) -> Sentences:
    """Records of text as sentences of at most ``length`` tokens; of a text file each line is one, blank ones left out.

    Raises TokenizerError without a tokenizer, or for one with more tokens than the model; DataError for too few.
    """
    if tokenizer is None:
        raise TokenizerError(f"{row_format.model} reads texts, and no tokenizer is beside it: give one (tokenizer=...)")
    if row_format.vocabulary is not None:
        check_size(tokenizer, row_format.vocabulary)
    texts, cut = list(_texts(records)), 0
    tokens: list[torch.Tensor] = []
    for begin in range(0, len(texts), AT_ONCE):
        for ids in tokenizer(texts[begin : begin + AT_ONCE], verbose=False)["input_ids"]:
            cut += len(ids) > length
            tokens.append(torch.tensor(_shortened(ids, tokenizer, length), dtype=torch.int64))
    tokens = [each for each in tokens if len(each)]
    if len(tokens) < 2:
        raise DataError(f"{records.name} has {len(tokens)} texts: embeddings are compared with one another, give more")
    if cut:
        logger.warning("%d of %d texts are longer than %d tokens and are cut there", cut, len(tokens), length)
    return Sentences(tokens, row_format)


def _shortened(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, length: int) -> Sequence[int]:
    """The first tokens, and the special one that the tokenizer ends a text with."""
    if len(ids) <= length:
        return ids
    closing = [ids[-1]] if ids[-1] in tokenizer.all_special_ids else []
    return [*ids[: length - len(closing)], *closing]


def _texts(records: Records) -> Iterator[str]:
    """Each text of a list, a data set or a ``.jsonl`` file; each line of a text file."""
    for index, text in enumerate(records.texts("text")):
        whole_file = records.lines is not None and records.lines[index][1] is None
        parts = text.split("\n") if whole_file else [text]
        yield from (part.strip() for part in split_documents(parts))
