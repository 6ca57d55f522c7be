"""The models and texts that the benchmarks of quality share."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.hf import reload
from lpc.data import BlockDataset
from lpc.data.text import token_sequences
from lpc.source import find_tokenizer


@dataclass(frozen=True)
class Corpus:
    """A model and its texts, under LPC_MODELS and LPC_DATA; all counts are of sequences of ``length`` tokens.

    The first ``heldout`` sequences of the held-out text are what tables report. The next ``choice`` ones are what
    options are chosen by. ``steps``: optimizer steps of a cell, of 8 sequences each.
    """

    model: str
    train_text: str
    heldout_text: str
    steps: int
    length: int = 128
    train: int = 4000
    heldout: int = 400
    choice: int = 400


CORPORA = {
    "stories260K": Corpus(
        "stories260K",
        "text/tinystories/tinystories_sample_2MiB.txt",
        "text/tinystories/tinystories_heldout_decoded.txt",
        steps=200,
    ),
    "wikitext-llama": Corpus("wikitext-llama", "text/wikitext-2/train.txt", "text/wikitext-2/valid.txt", steps=100),
}


@dataclass(frozen=True)
class Loaded:
    """A corpus in memory: the dense model, and sequences [n, length] to tune on, to report and to choose by."""

    model: PreTrainedModel
    train: BlockDataset
    heldout: BlockDataset
    choice: BlockDataset


def load(corpus: Corpus) -> Loaded:
    """Read a corpus; exits with a plain sentence when the shared data are absent or if texts overlap."""
    models = Path(os.environ.get("LPC_MODELS", "../shared/models"))
    data = Path(os.environ.get("LPC_DATA", "../shared/data"))
    for path in (models / corpus.model, data / corpus.train_text, data / corpus.heldout_text):
        if not path.exists():
            sys.exit(f"{path} is absent; set LPC_MODELS and LPC_DATA to where the models and texts are")
    tokenizer = find_tokenizer(models / corpus.model)
    assert tokenizer is not None
    train = _sequences(data / corpus.train_text, tokenizer, corpus.length, corpus.train)
    held = _sequences(data / corpus.heldout_text, tokenizer, corpus.length, corpus.heldout + corpus.choice)
    shared = {tuple(row) for row in train.blocks.tolist()} & {tuple(row) for row in held.blocks.tolist()}
    if shared:
        sys.exit(f"{corpus.model}: {len(shared)} held-out sequences are among those to tune on")
    parts = [
        BlockDataset(held.blocks[part], held.labels[part])
        for part in (slice(corpus.heldout), slice(corpus.heldout, None))
    ]
    return Loaded(reload(models / corpus.model), train, *parts)


def _sequences(path: Path, tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> BlockDataset:
    found = token_sequences(path, tokenizer, sequence_length=length)
    if len(found.tensor) < count:
        sys.exit(f"{path} has {len(found.tensor)} sequences of {length} tokens, {count} are needed")
    return BlockDataset(found.tensor[:count], found.labels[:count])
