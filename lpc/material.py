"""What a model is tuned and measured on: made of text or of rows, with a share held out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from peft import PeftModel
from torch.utils.data import Subset
from transformers import PreTrainedModel

from lpc.data import (
    BlockDataset,
    Collator,
    Data,
    Row,
    RowFormat,
    Rows,
    RowsLike,
    find_columns,
    instruction_rows,
    is_rows,
    open_rows,
    split_heldout,
    split_rows,
    token_sequences,
)
from lpc.evaluation import Score, score_model, token_perplexity
from lpc.options import DataOptions, InstructionFormat
from lpc.source import Source
from passes.errors import DataError, OptionError
from passes.models import Task, base_model, task_of

__all__ = ["DEFAULT_SEQUENCE_LENGTH", "AnyData", "Material", "prepare", "set_aside"]

AnyData: TypeAlias = "Data | RowsLike"
"""Text or instructions for a causal language model, or rows with a model's own inputs and labels for any model."""

DEFAULT_SEQUENCE_LENGTH = 256
DEFAULT_INSTRUCTION_LENGTH = 512


@dataclass(frozen=True)
class Material:
    """Training data, how batches are made of it (None: as the Trainer does), and the measure on what is held out.

    ``context_length`` is the length of the sequences that text was cut into, in tokens; None for rows.
    """

    train: torch.utils.data.Dataset[Row]
    collate: Callable[[list[Row]], Row] | None
    measure: Callable[[PreTrainedModel | PeftModel], Score]
    context_length: int | None


def prepare(source: Source, data: AnyData, options: DataOptions) -> Material:
    """Read the data for a model.

    Raises DataError, MissingFileError, TokenizerError, OptionError, and ModelError for a model that cannot be batched.
    """
    model = base_model(source.model)
    task = task_of(model)
    if task is not Task.CAUSAL_LM and options.instructions is not None:
        raise OptionError(f"instructions are for causal language models, and this is a model for {task}")
    columns = find_columns(data, options.instructions) if task is Task.CAUSAL_LM else None
    if columns is not None:
        answered = instruction_rows(
            data,
            columns,
            source.tokenizer,
            row_format=options.instructions or InstructionFormat(),
            length=_length(model, options.sequence_length, DEFAULT_INSTRUCTION_LENGTH),
        )
        return _of_rows(model, open_rows(answered, RowFormat.of(type(model), model.config)), options)
    if is_rows(data, task):
        if options.sequence_length is not None:
            raise OptionError(
                "sequence_length is for text, and the data are rows: leave it out, rows keep their length"
            )
        rows = open_rows(data, RowFormat.of(type(model), model.config))
        return _of_rows(model, rows, options)
    return _of_text(source, data, options)


def _of_rows(model: PreTrainedModel, rows: Rows, options: DataOptions) -> Material:
    fraction = min(options.heldout_fraction, options.heldout_rows / len(rows))
    train, heldout = split_rows(rows, fraction)
    collate = Collator.of(model.config, rows.format.task, model.dtype)
    return Material(train, collate, lambda tuned: score_model(tuned, heldout), None)


def _of_text(source: Source, data: Data, options: DataOptions) -> Material:
    model = base_model(source.model)
    length = _length(model, options.sequence_length, DEFAULT_SEQUENCE_LENGTH)
    vocabulary = model.config.get_text_config().vocab_size
    blocks = token_sequences(data, source.tokenizer, sequence_length=length, vocab_size=vocabulary).tensor
    train, heldout = split_heldout(blocks, min(options.heldout_fraction, options.heldout_sequences / len(blocks)))

    def measure(model: PreTrainedModel | PeftModel) -> Score:
        found = token_perplexity(model, heldout)
        loss = math.log(found.value)
        return Score(loss=loss, accuracy=None, perplexity=found.value, rows=len(heldout), labels=found.tokens)

    return Material(BlockDataset(train), None, measure, length)


def _length(model: PreTrainedModel, wanted: int | None, default: int) -> int:
    """The length of a sequence in tokens. Raises OptionError for one beyond the model's context."""
    context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if wanted is not None and context is not None and wanted > context:
        raise OptionError(f"sequence_length {wanted} is longer than the model's context of {context} tokens")
    return wanted or min(default, context or default)


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
