"""Rows: data that already are a model's inputs, labels with them, checked against what the model takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from lpc.data.documents import listed
from lpc.data.labels import IGNORED, LABEL_ALIASES, LabelFormat
from lpc.data.numbers import TOKENS, as_tensor
from lpc.data.records import Records, open_records
from passes.errors import DataError, MissingFileError
from passes.models import Task, task_of

if TYPE_CHECKING:
    import datasets

__all__ = ["IGNORED", "Row", "RowFormat", "Rows", "RowsLike", "open_rows", "rows_of", "split_rows"]

Row: TypeAlias = "dict[str, torch.Tensor]"

RowsLike: TypeAlias = (
    "datasets.Dataset | torch.utils.data.Dataset[Any] | Sequence[Mapping[str, Any]] | Sequence[str | Path] | str | Path"
)
"""Rows as the user may hand them over: in memory, or a ``.jsonl`` file or a folder that ``datasets`` saved."""

ALONG_TOKENS = ("attention_mask", "token_type_ids", "position_ids")
"""Inputs with one value a token."""


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """What one row of a model's data looks like; ``context`` is the most tokens, None if nothing limits them."""

    model: str
    task: Task
    inputs: tuple[str, ...]
    vocabulary: int | None
    context: int | None
    labels: LabelFormat

    @classmethod
    def of(cls, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> RowFormat:
        """The format for a model of a class. Raises UnsupportedModelError if the class has no task."""
        parameters = inspect.signature(model_class.forward).parameters.values()
        names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]
        task, text = task_of(model_class), config.get_text_config()
        names += [] if task is not Task.FEATURE_EXTRACTION or "labels" in names else ["labels"]
        return cls(
            model=model_class.__name__,
            task=task,
            inputs=tuple(names),
            vocabulary=getattr(text, "vocab_size", None),
            context=getattr(text, "max_position_embeddings", None),
            labels=LabelFormat.of(task, config),
        )

    def read(self, where: str, values: Mapping[str, Any]) -> Row:
        """One row as tensors. Raises DataError naming the row and what is wrong with it."""
        values = self._renamed(where, values)
        self.check_names(where, values)
        row = {name: as_tensor(where, name, value) for name, value in values.items()}
        for name in TOKENS:
            if name in row:
                self._check_tokens(where, name, row[name])
        _check_along(where, row)
        tokens = len(row["input_ids"]) if "input_ids" in row else None
        for name in self.task.label_names:
            row[name] = self.labels.read(where, name, row[name], tokens)
        return row

    def check_names(self, what: str, names: Mapping[str, Any] | Sequence[str]) -> None:
        """Raises DataError unless the names are inputs of the model, labels among them."""
        names = [self._name(name) for name in names]
        unknown = [name for name in names if name not in self.inputs]
        if unknown:
            raise DataError(
                f"{what} has {listed(unknown)}, which {self.model} does not take: remove or rename it "
                f"(the model takes {', '.join(self.inputs)})"
            )
        if "input_ids" in self.inputs and "input_ids" not in names:
            raise DataError(f"{what} has no input_ids, by which {self.model} is asked (found: {listed(names)})")
        missing = [name for name in self.task.label_names if name not in names]
        if missing:
            raise DataError(
                f"{what} has no {' and '.join(missing)}: the loss of {self.model} needs it (found: {listed(names)})"
            )

    def _name(self, name: str) -> str:
        return "labels" if name in LABEL_ALIASES and name not in self.inputs and "labels" in self.inputs else name

    def _renamed(self, where: str, values: Mapping[str, Any]) -> dict[str, Any]:
        found = {self._name(name): value for name, value in values.items()}
        if len(found) < len(values):
            raise DataError(f"{where} has labels under two names ({listed(values)}): leave one out")
        return found

    def _check_tokens(self, where: str, name: str, ids: torch.Tensor) -> None:
        if ids.ndim != 1 or len(ids) == 0:
            raise DataError(f"{where}: {name} must be one sequence of tokens, not {list(ids.shape)}")
        if self.context is not None and len(ids) > self.context:
            raise DataError(f"{where} has {len(ids)} tokens and the model's context is {self.context}: truncate it")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or (self.vocabulary is not None and high >= self.vocabulary):
            raise DataError(
                f"{where} has token {low if low < 0 else high}, outside the model's vocabulary of "
                f"{self.vocabulary}: it was tokenized for another model"
            )


def _check_along(where: str, row: Row) -> None:
    for name in ALONG_TOKENS:
        if "input_ids" in row and name in row and row[name].ndim == 1 and len(row[name]) != len(row["input_ids"]):
            raise DataError(f"{where} has {len(row[name])} {name} and {len(row['input_ids'])} input_ids")


class Rows(torch.utils.data.Dataset[Row]):
    """Rows of records, read one at a time; ``indices`` are their places among the records."""

    def __init__(self, records: Records, row_format: RowFormat, indices: Sequence[int] | None = None) -> None:
        self._records, self.format = records, row_format
        self._indices = range(len(records)) if indices is None else indices

    @property
    def indices(self) -> Sequence[int]:
        """The places of the rows among the records."""
        return self._indices

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Row:
        """One row as tensors. Raises DataError."""
        place = self._indices[index]
        where, values = self._records.where(place), self._records[place]
        if not isinstance(values, Mapping):
            raise DataError(f"{where} is a {type(values).__name__}, not a dict of the model's inputs by name")
        return self.format.read(where, values)

    def subset(self, indices: Sequence[int]) -> Rows:
        """The rows at some indices."""
        return Rows(self._records, self.format, [self._indices[index] for index in indices])

    def __iter__(self) -> Iterator[Row]:
        """All rows, in order."""
        return (self[index] for index in range(len(self)))


def open_rows(data: RowsLike, row_format: RowFormat) -> Rows:
    """The rows of a data set, a list of dicts, a ``.jsonl`` file or files, or a folder that ``datasets`` saved.

    Raises DataError for what is none of these, has no row, or columns that do not suit the model; MissingFileError.
    """
    return rows_of(open_records(data), row_format)


def rows_of(records: Records, row_format: RowFormat) -> Rows:
    """Records as rows of a model; the first is read. Raises DataError, and MissingFileError for names of no file."""
    import datasets

    if isinstance(records.first, str):
        if records.remark:  # strings in a list: no model but a causal one takes texts
            raise MissingFileError(f"no such file or folder: {records.first[:60]}")
        raise DataError(
            f"{records.name}: {row_format.model} ({row_format.task}) needs rows with its inputs, "
            f"{', '.join(_wanted(row_format))}: give a .jsonl with one JSON object a row, or a folder written by "
            "datasets' save_to_disk"
        )
    if isinstance(records.source, torch.Tensor | np.ndarray):
        raise DataError(
            f"data of type {type(records.source).__name__}: {row_format.model} needs rows with its inputs and labels, "
            "as a datasets.Dataset, a torch data set with a length, or a list of dicts"
        )
    if isinstance(records.source, datasets.Dataset):
        row_format.check_names("the data set", records.source.column_names)
        if records.source.format["type"] != "custom":
            records = replace(records, source=records.source.with_format("numpy"))
    rows = Rows(records, row_format)
    _ = rows[0]
    return rows


def _wanted(row_format: RowFormat) -> list[str]:
    inputs = [name for name in ("input_ids", "pixel_values") if name in row_format.inputs]
    return [*inputs, *row_format.task.label_names]


SPLIT_SEED = 0


def split_rows(rows: Rows, fraction: float) -> tuple[Rows, Rows]:
    """``(train, heldout)``: a random choice that is the same every time, at least one row on each side.

    Random, since data are often sorted by label. Raises DataError where there is only one row.
    """
    if len(rows) < 2:
        raise DataError("one row cannot be split into train and held-out: give more data")
    count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    train, heldout = rows.subset(sorted(order[count:])), rows.subset(sorted(order[:count]))
    assert set(train.indices).isdisjoint(heldout.indices), "no held-out row is tuned on or scored"
    return train, heldout
