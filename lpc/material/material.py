"""What a model is tuned and measured on: made of text or of rows, with a share held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, cast

import torch
from peft import PeftModel
from torch.utils.data import Subset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.options import IdRows
from lpc.data import (
    SPLIT_SEED,
    BlockDataset,
    Collator,
    Data,
    Reading,
    Row,
    Rows,
    RowsLike,
    Sentences,
    TokenBlocks,
    read_data,
    split_heldout,
    split_rows,
)
from lpc.evaluation import (
    Quality,
    Replies,
    completions,
    embedding_quality,
    quality,
    quality_of,
    token_perplexity,
    warn_of_loss,
    warn_of_text,
)
from lpc.material.embed import EmbedPass
from lpc.options import DataOptions
from lpc.source import Source
from passes.errors import DataError
from passes.models import Task, base_model, tensors_digest
from passes.pipeline import Pass, caller_state_kept

__all__ = ["Answerer", "AnyData", "Material", "Measurer", "of_data", "of_text", "set_aside"]
AnyData: TypeAlias = "Data | RowsLike"
"""Text or instructions for a causal language model, or rows with a model's own inputs and labels for any model."""


Measurer: TypeAlias = "Callable[[PreTrainedModel | PeftModel, int], Quality]"
"""Measures a model on what is held out, so many sequences or rows a batch."""

Answerer: TypeAlias = "Callable[[PreTrainedModel | PeftModel], Replies]"
"""Has a model answer the fixed prompts."""


@dataclass(frozen=True)
class Material:
    """Training data, how batches are made of it (None: as the Trainer does), and the measure on what is held out.

    ``measure_dense`` is the same measure for the model as it was given: a warning says so if what it gives is not
    plausible. It and ``measure_pruned`` also take down a few completions of what is held out.
    ``measure_package`` is the measure for an ONNX folder, in onnxruntime.
    ``context_length`` is the length of the sequences that text was cut into, in tokens; None for rows. ``digest`` gives
    the sha256 of all of the data that the user gave. ``generate`` is the pass by which the dense model makes its own
    part of it, texts or vectors, before which nothing can be read of that; ``answer`` is there for an instruction
    model. ``options`` are those of the data, with its share settled. ``notes`` say for the report what the data
    are, where the user did not.
    """

    train: torch.utils.data.Dataset[Row]
    collate: Callable[[list[Row]], Row] | None
    measure: Measurer
    measure_dense: Measurer
    measure_pruned: Measurer
    context_length: int | None
    measure_package: Callable[[Path], Quality]
    digest: Callable[[], str] = str
    generate: Pass | None = None
    answer: Answerer | None = None
    options: DataOptions = DataOptions()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> IdRows:
        """The training data of a language model, by index."""
        return cast("IdRows", self.train)


LEAST_HELD = 3
"""Texts that are held out at least: fewer have no two likenesses to compare."""

DIGESTED_ROWS = 20_000
"""Of more rows than these, so many evenly spaced ones stand for all in their digest."""


def of_data(
    source: Source, data: AnyData, reading: Reading, options: DataOptions
) -> tuple[Material, TokenBlocks | None]:
    """What the user's data make, and the blocks of tokens where they are text. Raises what ``prepare`` raises."""
    found = read_data(data, reading)
    if isinstance(found, Sentences):
        return _of_sentences(base_model(source.model), found, options), None
    if isinstance(found, Rows):
        return _of_rows(base_model(source.model), source.tokenizer, found, options), None
    return _of_blocks(source, found, options), found


def _speaking(
    measure: Measurer, tokenizer: PreTrainedTokenizerBase | None, heldout: Callable[[], torch.utils.data.Dataset[Row]]
) -> Measurer:
    """The measure, and what a causal language model goes on with after the beginnings of what is held out."""

    def spoken(model: PreTrainedModel | PeftModel, batch_size: int) -> Quality:
        return replace(measure(model, batch_size), completions=completions(model, tokenizer, heldout()))

    return spoken


def _of_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, rows: Rows, options: DataOptions
) -> Material:
    fraction = min(options.heldout_fraction, options.heldout_rows / len(rows))
    train, heldout = split_rows(rows, fraction)
    collate = Collator.of(model.config, rows.format.task, model.dtype)

    def measure(model: PreTrainedModel | PeftModel, batch_size: int) -> Quality:
        return quality_of(model, heldout, batch_size=batch_size)

    def measure_dense(model: PreTrainedModel | PeftModel, batch_size: int) -> Quality:
        found = measure(model, batch_size)
        if rows.format.task in (Task.CAUSAL_LM, Task.MASKED_LM, Task.SEQ2SEQ_LM):
            warn_of_loss(found.loss, rows.format.vocabulary)
        return found

    def measure_package(folder: Path) -> Quality:
        return quality(folder, heldout, batch_size=1)

    dense, pruned = (_speaking(each, tokenizer, lambda: heldout) for each in (measure_dense, measure))
    return Material(train, collate, measure, dense, pruned, None, measure_package, lambda: _rows_digest(rows))


def _of_sentences(model: PreTrainedModel, texts: Sentences, options: DataOptions) -> Material:
    """Texts without labels: a random choice is held out, and of the rest not more are taken than the options say."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    count = min(max(LEAST_HELD, round(len(texts) * options.heldout_fraction)), options.heldout_rows)
    if len(order) <= count:
        raise DataError(f"{len(texts)} texts cannot be split into train and {count} held-out ones: give more data")
    heldout = texts.subset(sorted(order[:count]))
    train = texts.subset(sorted(order[count : count + options.sentences]))

    def measure(model: PreTrainedModel | PeftModel, batch_size: int) -> Quality:
        return embedding_quality(model, heldout, batch_size)

    def measure_package(folder: Path) -> Quality:
        return quality(folder, [heldout[index] for index in range(len(heldout))], batch_size=1)

    def digest() -> str:
        return tensors_digest({"tokens": each} for each in texts.tokens)

    collate, embed = Collator.of(model.config, Task.FEATURE_EXTRACTION), EmbedPass({"train": train, "heldout": heldout})
    return Material(train, collate, measure, measure, measure, None, measure_package, digest, generate=embed)


@caller_state_kept()
def _rows_digest(rows: Rows) -> str:
    """The sha256 of rows, whose own transforms may draw: from the same random state every time."""
    torch.manual_seed(0)
    every = max(1, math.ceil(len(rows) / DIGESTED_ROWS))

    def some() -> Iterator[Row]:
        yield {"count": torch.tensor(len(rows))}
        yield from (rows[index] for index in range(0, len(rows), every))

    return tensors_digest(some())


def _of_blocks(source: Source, blocks: TokenBlocks, options: DataOptions) -> Material:
    fraction = min(options.heldout_fraction, options.heldout_sequences / len(blocks.tensor))
    train, heldout = split_heldout(blocks.tensor, fraction)
    train_labels, labels = split_heldout(blocks.labels, fraction)
    whole = {"tokens": blocks.tensor, "labels": blocks.labels}
    material = of_text(source, BlockDataset(train, train_labels), blocks.tensor.shape[1], lambda: (heldout, labels))
    return replace(material, digest=lambda: tensors_digest([whole]))


def of_text(
    source: Source,
    train: torch.utils.data.Dataset[Row],
    length: int,
    heldout: Callable[[], tuple[torch.Tensor, torch.Tensor]],
) -> Material:
    """Sequences of so many tokens; ``heldout`` gives tokens and labels, both ``[n, length]``, when they are there."""

    def measure(model: PreTrainedModel | PeftModel, batch_size: int) -> Quality:
        tokens, labels = heldout()
        found = token_perplexity(model, tokens, batch_size, labels=labels)
        loss = math.log(found.value)
        return Quality(loss=loss, accuracy=None, perplexity=found.value, rows=len(tokens), labels=found.tokens)

    tokenizer = source.tokenizer  # the measure must not hold the source, and with it the dense model

    def measure_dense(model: PreTrainedModel | PeftModel, batch_size: int) -> Quality:
        found = measure(model, batch_size)
        warn_of_text(model, tokenizer, heldout()[0], found.loss)
        return found

    def measure_package(folder: Path) -> Quality:
        texts = [{"input_ids": ids, "labels": each} for ids, each in zip(*heldout(), strict=True)]
        return quality(folder, texts, batch_size=1)

    dense, pruned = (_speaking(each, tokenizer, lambda: BlockDataset(*heldout())) for each in (measure_dense, measure))
    return Material(train, None, measure, dense, pruned, length, measure_package)


def set_aside(
    data: torch.utils.data.Dataset[Row], fraction: float = 0.05, most: int = 64
) -> tuple[torch.utils.data.Dataset[Row], torch.utils.data.Dataset[Row]]:
    """``(train, aside)``: a share of the training data by which the best state is chosen.

    Of text the end of the stream, of rows a random choice. Raises DataError where there is only one.
    """
    count = len(data)  # type: ignore[arg-type]
    if isinstance(data, Rows):
        return split_rows(data, min(fraction, most / max(count, 1)))
    if count < 2:
        raise DataError(f"{count} sequence cannot be split into one to train on and one to choose by: give more text")
    last = min(max(1, round(count * fraction)), most, count - 1)
    return Subset(data, range(count - last)), Subset(data, range(count - last, count))
