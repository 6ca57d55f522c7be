"""Rows: data that already are a model's inputs, labels with them, checked against what the model takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from lpc.data.documents import read_jsonl
from passes.errors import DataError, MissingFileError
from passes.models import Task, task_of

__all__ = ["Row", "RowFormat", "Rows", "RowsLike", "is_rows", "load_folder", "open_rows", "split_rows"]

Row: TypeAlias = "dict[str, torch.Tensor]"

RowsLike: TypeAlias = (
    "datasets.Dataset | torch.utils.data.Dataset[Any] | Sequence[Mapping[str, Any]] | Sequence[str | Path] | str | Path"
)
"""Rows as the user may hand them over: in memory, or a ``.jsonl`` file or a folder that ``datasets`` saved."""

LABEL_ALIASES = ("label", "label_ids")
"""What other libraries call ``labels``."""

IGNORED = -100
"""The label of a place that has none."""


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """What one row of a model's data looks like; ``context`` is the longest ``input_ids``, None if nothing limits it.

    ``classes`` is the number of classes that integer labels choose from; None if the labels are not such.
    """

    model: str
    task: Task
    inputs: tuple[str, ...]
    vocabulary: int | None
    context: int | None
    classes: int | None

    @classmethod
    def of(cls, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> RowFormat:
        """The format for a model of a class. Raises UnsupportedModelError if the class has no task."""
        parameters = inspect.signature(model_class.forward).parameters.values()
        names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]
        task, text = task_of(model_class), config.get_text_config()
        return cls(
            model=model_class.__name__,
            task=task,
            inputs=tuple(names),
            vocabulary=getattr(text, "vocab_size", None),
            context=getattr(text, "max_position_embeddings", None),
            classes=_classes(task, config),
        )

    def read(self, index: int, values: Mapping[str, Any]) -> Row:
        """One row as tensors. Raises DataError naming the row and what is wrong with it."""
        values = self._renamed(values)
        self.check_names(f"row {index} of the data", values)
        row = {name: _tensor(f"row {index} of the data", name, value) for name, value in values.items()}
        if "input_ids" in row:
            self._check_tokens(index, row["input_ids"])
        if "labels" in row:
            self._check_labels(index, row["labels"])
        return row

    def check_names(self, what: str, names: Mapping[str, Any] | Sequence[str]) -> None:
        """Raises DataError unless the names are inputs of the model, labels among them."""
        names = [self._name(name) for name in names]
        unknown = [name for name in names if name not in self.inputs]
        if unknown:
            raise DataError(
                f"{what} has {', '.join(unknown)}, which {self.model} does not take: remove or rename it "
                f"(the model takes {', '.join(self.inputs)})"
            )
        missing = [name for name in self.task.label_names if name not in names]
        if missing:
            raise DataError(
                f"{what} has no {' and '.join(missing)}: the loss of {self.model} needs it (found: {', '.join(names)})"
            )

    def _name(self, name: str) -> str:
        return "labels" if name in LABEL_ALIASES and name not in self.inputs and "labels" in self.inputs else name

    def _renamed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {self._name(name): value for name, value in values.items()}

    def _check_tokens(self, index: int, ids: torch.Tensor) -> None:
        if ids.ndim != 1 or len(ids) == 0:
            raise DataError(f"row {index} of the data: input_ids must be one sequence of tokens, not {list(ids.shape)}")
        if self.context is not None and len(ids) > self.context:
            raise DataError(
                f"row {index} of the data has {len(ids)} tokens and the model's context is {self.context}: truncate it"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or (self.vocabulary is not None and high >= self.vocabulary):
            raise DataError(
                f"row {index} of the data has token {low if low < 0 else high}, outside the model's vocabulary of "
                f"{self.vocabulary}: it was tokenized for another model"
            )

    def _check_labels(self, index: int, labels: torch.Tensor) -> None:
        if self.classes is None or labels.is_floating_point():
            return
        real = labels[labels != IGNORED]
        if real.numel() and not 0 <= int(real.min()) <= int(real.max()) < self.classes:
            raise DataError(
                f"row {index} of the data has label {int(real.max() if int(real.min()) >= 0 else real.min())}, "
                f"and the model has labels 0 to {self.classes - 1}"
            )


def _classes(task: Task, config: PreTrainedConfig) -> int | None:
    if task in (Task.CAUSAL_LM, Task.MASKED_LM, Task.SEQ2SEQ_LM):
        vocabulary: int | None = getattr(config.get_text_config(), "vocab_size", None)
        return vocabulary
    if task is Task.QUESTION_ANSWERING or config.num_labels == 1 or config.problem_type == "regression":
        return None
    return int(config.num_labels)


def _tensor(where: str, name: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{where}: {name} is ragged ({error})") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: {name} is a {type(value).__name__}, not numbers: tokenize or preprocess it first")
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))


class Rows(torch.utils.data.Dataset[Row]):
    """Rows of a source, read one at a time; ``indices`` are the places in the source."""

    def __init__(self, source: Any, row_format: RowFormat, indices: Sequence[int] | None = None) -> None:
        self._source, self.format = source, row_format
        self._indices = range(len(source)) if indices is None else indices

    @property
    def indices(self) -> Sequence[int]:
        """The places of the rows in the source."""
        return self._indices

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Row:
        """One row as tensors. Raises DataError."""
        place = self._indices[index]
        values = self._source[place]
        if not isinstance(values, Mapping):
            raise DataError(
                f"row {place} of the data is a {type(values).__name__}, not a dict of the model's inputs by name"
            )
        return self.format.read(place, values)

    def subset(self, indices: Sequence[int]) -> Rows:
        """The rows at some indices."""
        return Rows(self._source, self.format, [self._indices[index] for index in indices])

    def __iter__(self) -> Iterator[Row]:
        """All rows, in order."""
        return (self[index] for index in range(len(self)))


def is_rows(data: object, task: Task) -> bool:
    """Whether data are rows and not text: always so for a model that is no causal LM.

    For a causal LM: dicts, a torch data set, a ``datasets.Dataset`` with labels and no text, a saved one, a ``.jsonl``
    with ``input_ids`` and no text.
    """
    if task is not Task.CAUSAL_LM:
        return True
    if isinstance(data, str | Path):
        data = [data]
    if isinstance(data, datasets.Dataset):
        return "text" not in data.column_names and bool({"labels", *LABEL_ALIASES} & set(data.column_names))
    if isinstance(data, torch.utils.data.Dataset):
        return True
    if not isinstance(data, Sequence) or not data:
        return False
    if len(data) == 1 and isinstance(data[0], str | Path):
        return _is_row_file(Path(data[0]))
    return isinstance(data[0], Mapping)


def _is_row_file(path: Path) -> bool:
    if len(path.name) > 255:  # a text, not a name: the file system would refuse to look it up
        return False
    if path.is_dir():
        return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return False
    first = next(read_jsonl(path), None)
    return first is not None and "text" not in first[1] and "input_ids" in first[1]


def open_rows(data: RowsLike, row_format: RowFormat) -> Rows:
    """The rows of a data set, a list of dicts, a ``.jsonl`` file or files, or a folder that ``datasets`` saved.

    Raises DataError for what is none of these, has no row, or columns that do not suit the model; MissingFileError.
    """
    source: Any = data
    if isinstance(data, str | Path):
        source = _read(Path(data), row_format)
    elif isinstance(data, list | tuple) and data and all(isinstance(item, str | Path) for item in data):
        source = [row for item in data for row in _read(Path(item), row_format)]
    if isinstance(source, datasets.Dataset):
        row_format.check_names("the data set", source.column_names)
        source = source if source.format["type"] == "custom" else source.with_format("numpy")
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__") or isinstance(source, torch.Tensor):
        raise DataError(
            f"data of type {type(data).__name__}: {row_format.model} needs rows with its inputs and labels, as a "
            "datasets.Dataset (one split, not streamed), a torch data set with a length, or a list of dicts"
        )
    if len(source) == 0:
        raise DataError("the data has no row")
    rows = Rows(source, row_format)
    _ = rows[0]
    return rows


def _read(path: Path, row_format: RowFormat) -> Any:
    try:
        if path.is_dir():
            return load_folder(path)
        if path.suffix.lower() == ".jsonl":
            return [row for _, row in read_jsonl(path)]
        exists = path.exists()
    except OSError:  # a name too long: a text
        exists = False
    if not exists:
        raise MissingFileError(f"no such file or folder: {str(path)[:60]}")
    raise DataError(
        f"{path}: {row_format.model} ({row_format.task}) needs rows with its inputs, {', '.join(_wanted(row_format))}: "
        "give a .jsonl with one JSON object a row, or a folder written by datasets' save_to_disk"
    )


def _wanted(row_format: RowFormat) -> list[str]:
    inputs = [name for name in ("input_ids", "pixel_values") if name in row_format.inputs]
    return [*inputs, *row_format.task.label_names]


def load_folder(path: Path) -> datasets.Dataset:
    """A data set that ``datasets`` saved, one split. Raises DataError."""
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets' errors share no other base class
        raise DataError(f"{path} cannot be loaded as a saved data set: {error}") from error
    if not isinstance(found, datasets.Dataset):
        raise DataError(
            f"{path} holds several splits ({', '.join(found)}): name the folder of one, such as {path}/train"
        )
    return found


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
