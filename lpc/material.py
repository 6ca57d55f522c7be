"""What a model is tuned and measured on: made of text or of rows, with a share held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from peft import PeftModel
from torch.utils.data import Subset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lpc.data import (
    BlockDataset,
    Collator,
    Data,
    Reading,
    Row,
    RowFormat,
    Rows,
    RowsLike,
    TokenBlocks,
    chat_prompts,
    check_size,
    read_data,
    split_heldout,
    split_rows,
)
from lpc.evaluation import (
    Quality,
    completions,
    prompts_in,
    quality_of,
    token_perplexity,
    warn_of_loss,
    warn_of_text,
)
from lpc.options import DataOptions
from lpc.source import Source
from passes.errors import DataError
from passes.models import Task, base_model, tensors_digest
from passes.pipeline import caller_state_kept

__all__ = ["AnyData", "Material", "prepare", "set_aside"]

AnyData: TypeAlias = "Data | RowsLike"
"""Text or instructions for a causal language model, or rows with a model's own inputs and labels for any model."""


Measurer: TypeAlias = "Callable[[PreTrainedModel | PeftModel, int], Quality]"
"""Measures a model on what is held out, so many sequences or rows a batch."""


@dataclass(frozen=True)
class Material:
    """Training data, how batches are made of it (None: as the Trainer does), and the measure on what is held out.

    ``measure_dense`` is the same measure for the model as it was given: a warning says so if what it gives is not
    plausible. It and ``measure_pruned`` also take down a few completions.
    ``context_length`` is the length of the sequences that text was cut into, in tokens; None for rows. ``digest`` gives
    the sha256 of all of the data.
    """

    train: torch.utils.data.Dataset[Row]
    collate: Callable[[list[Row]], Row] | None
    measure: Measurer
    measure_dense: Measurer
    measure_pruned: Measurer
    context_length: int | None
    digest: Callable[[], str] = str


DIGESTED_ROWS = 20_000
"""Of more rows than these, so many evenly spaced ones stand for all in their digest."""


def prepare(source: Source, data: AnyData, options: DataOptions) -> Material:
    """Read the data for a model.

    Raises DataError, MissingFileError, TokenizerError (before anything is read, for a tokenizer with more tokens than
    the model), OptionError, and ModelError for a model that cannot be batched.
    """
    model = base_model(source.model)
    reading = Reading(
        rows=RowFormat.of(type(model), model.config),
        tokenizer=source.tokenizer,
        sequence_length=options.sequence_length,
        instructions=options.instructions,
    )
    if source.tokenizer is not None and reading.rows.vocabulary is not None:
        check_size(source.tokenizer, reading.rows.vocabulary)
    found = read_data(data, reading)
    if isinstance(found, Rows):
        return _of_rows(model, source.tokenizer, found, options)
    return _of_blocks(source, found, options)


def _speaking(
    measure: Measurer, tokenizer: PreTrainedTokenizerBase | None, prompts: Sequence[Sequence[int]]
) -> Measurer:
    """The measure, and completions of the prompts."""

    def spoken(model: PreTrainedModel | PeftModel, batch_size: int) -> Quality:
        return replace(measure(model, batch_size), completions=completions(model, tokenizer, prompts))

    return spoken


def _prompts(
    tokenizer: PreTrainedTokenizerBase | None, heldout: torch.utils.data.Dataset[Row], task: Task
) -> list[list[int]]:
    """What a causal language model is to go on with: prompts that are held out, and chats if it knows such."""
    if tokenizer is None or task is not Task.CAUSAL_LM:
        return []
    return [*prompts_in(heldout), *chat_prompts(tokenizer)]


def _of_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, rows: Rows, options: DataOptions
) -> Material:
    fraction = min(options.heldout_fraction, options.heldout_rows / len(rows))
    train, heldout = split_rows(rows, fraction)
    prompts = _prompts(tokenizer, heldout, rows.format.task)
    collate = Collator.of(model.config, rows.format.task, model.dtype)

    def measure(model: PreTrainedModel | PeftModel, batch_size: int) -> Quality:
        return quality_of(model, heldout, batch_size=batch_size)

    def measure_dense(model: PreTrainedModel | PeftModel, batch_size: int) -> Quality:
        quality = measure(model, batch_size)
        if rows.format.task in (Task.CAUSAL_LM, Task.MASKED_LM, Task.SEQ2SEQ_LM):
            warn_of_loss(quality.loss, rows.format.vocabulary)
        return quality

    dense, pruned = _speaking(measure_dense, tokenizer, prompts), _speaking(measure, tokenizer, prompts)
    return Material(train, collate, measure, dense, pruned, None, lambda: _rows_digest(rows))


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

    def measure(model: PreTrainedModel | PeftModel, batch_size: int) -> Quality:
        found = token_perplexity(model, heldout, batch_size, labels=labels)
        loss = math.log(found.value)
        return Quality(loss=loss, accuracy=None, perplexity=found.value, rows=len(heldout), labels=found.tokens)

    tokenizer = source.tokenizer  # the measure must not hold the source, and with it the dense model

    def measure_dense(model: PreTrainedModel | PeftModel, batch_size: int) -> Quality:
        quality = measure(model, batch_size)
        warn_of_text(model, tokenizer, heldout, quality.loss)
        return quality

    data, whole = BlockDataset(train, train_labels), {"tokens": blocks.tensor, "labels": blocks.labels}
    prompts = _prompts(tokenizer, BlockDataset(heldout, labels), Task.CAUSAL_LM)
    dense, pruned = _speaking(measure_dense, tokenizer, prompts), _speaking(measure, tokenizer, prompts)
    return Material(data, None, measure, dense, pruned, blocks.tensor.shape[1], lambda: tensors_digest([whole]))


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
