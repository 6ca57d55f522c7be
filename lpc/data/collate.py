"""Batches of rows: what varies in length is padded on the right, the rest is stacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig

from lpc.data.labels import IGNORED
from lpc.data.rows import Row
from passes.errors import DataError, ModelError
from passes.models import Task

__all__ = ["Collator"]

TOKEN_INPUTS = ("input_ids", "decoder_input_ids")


@dataclass(frozen=True)
class Collator:
    """Makes a batch of rows.

    Sequences of integers are padded on the right: tokens with ``pad``, labels with -100, everything else (masks, token
    types) with 0. A missing ``attention_mask`` is made. Images get ``dtype``. ``pad`` is None if the model has none;
    then rows are padded with token 0 under the mask.
    """

    pad: int | None
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, config: PreTrainedConfig, task: Task, dtype: torch.dtype = torch.float32) -> Collator:
        """The collator of a model. Raises ModelError where the model cannot do without a padding token."""
        text = config.get_text_config()
        pad = getattr(text, "pad_token_id", None)
        if task is Task.SEQUENCE_CLASSIFICATION and pad is None:
            raise ModelError(
                f"the {config.model_type} classifier has no pad_token_id, by which it finds the end of a row in a "
                "batch: set model.config.pad_token_id to the padding token of its tokenizer"
            )
        return cls(pad, dtype)

    def __call__(self, rows: Sequence[Row]) -> Row:
        """One batch, [rows, ...] each. Raises DataError if rows have other inputs or shapes than the first."""
        rows = [self._with_mask(row) for row in rows]
        for row in rows:
            if row.keys() != rows[0].keys():
                raise DataError(
                    f"one row has {', '.join(rows[0])} and another {', '.join(row)}: all must have the same"
                )
        return {name: self._join(name, [row[name] for row in rows]) for name in rows[0]}

    def _with_mask(self, row: Row) -> Row:
        if "input_ids" not in row or "attention_mask" in row:
            return row
        return {**row, "attention_mask": torch.ones_like(row["input_ids"])}

    def _join(self, name: str, values: list[torch.Tensor]) -> torch.Tensor:
        if values[0].ndim == 1 and not values[0].is_floating_point():
            fill = IGNORED if name == "labels" else (self.pad or 0) if name in TOKEN_INPUTS else 0
            return pad_sequence(values, batch_first=True, padding_value=fill)
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise DataError(f"{name} has different shapes in different rows ({sorted(shapes)}): make them equal")
        stacked = torch.stack(values)
        return stacked.to(self.dtype) if name == "pixel_values" else stacked
