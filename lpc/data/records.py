"""Records: whatever the user handed over as data, opened once, with the place of each record for messages.

A list of strings is a list of files if all of them exist, and a list of texts if none does; a `Path`, or a single
string, is always a file or a folder. What the records mean is for `lpc.readers` to say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lpc.data.documents import checked_text, listed, read_jsonl, read_text, refuse_other_formats
from passes.errors import DataError, MissingFileError
from passes.models import reason

if TYPE_CHECKING:
    import datasets

__all__ = ["Records", "load_folder", "open_records"]


@dataclass(frozen=True, kw_only=True)
class Records:
    """Texts, mappings or sequences of token ids, by index.

    ``name`` is the file, or "the data"; ``lines`` has file and line (None: a whole file) of each record of files.
    ``remark`` ends a message that there is too little, and says so if strings were taken as texts.
    """

    source: Any
    name: str = "the data"
    lines: Sequence[tuple[Path, int | None]] | None = None
    remark: str = ""

    def __len__(self) -> int:
        """The number of records."""
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        """One record, as it was handed over."""
        return self.source[index]

    def __iter__(self) -> Iterator[Any]:
        """All records, in order."""
        return (self.source[index] for index in range(len(self)))

    @property
    def first(self) -> Any:
        """The first record, by which the data's kind is told; of a data set the whole row."""
        return self.source[0]

    def where(self, index: int) -> str:
        """The place of a record, for messages."""
        if self.lines is None:
            return f"row {index} of {self.name}"
        path, line = self.lines[index]
        return str(path) if line is None else f"{path}, line {line}"

    def column(self, name: str) -> Iterator[Any]:
        """One field of every record that is a mapping, and the others as they are. Raises DataError if it lacks."""
        import datasets  # here, as commands that read no data are not to wait for it

        is_plain = isinstance(self.source, datasets.Dataset) and self.source.format["type"] != "custom"
        if is_plain and name in self.source.column_names:
            yield from self.source.with_format(None)[name]
            return
        for index, record in enumerate(self):
            if isinstance(record, Mapping) and name not in record:
                raise DataError(f"{self.where(index)}: no `{name}` field (it has: {listed(record)})")
            yield record[name] if isinstance(record, Mapping) else record

    def texts(self, name: str) -> Iterator[str]:
        """One field of every record, or the record itself, as text. Raises DataError."""
        for index, text in enumerate(self.column(name)):
            yield checked_text(self.where(index), name, text)

    def mapping(self, index: int) -> Mapping[str, Any]:
        """One record if it is a mapping. Raises DataError."""
        record = self[index]
        if not isinstance(record, Mapping):
            raise DataError(f"{self.where(index)} is a {type(record).__name__}, not a dict")
        return record


def open_records(data: object) -> Records:
    """Open a path or paths, a list of texts, rows or token ids, a tensor, or a data set with a length.

    Raises `MissingFileError`, and `DataError` for what is none of these, holds nothing, or is at fault in its file.
    """
    records = _open(data)
    if len(records) == 0:
        raise DataError(f"{records.name} has no row: it is empty")
    return records


def _open(data: object) -> Records:
    if isinstance(data, Records):
        return data
    if isinstance(data, str | Path):
        return _from_paths([data])
    if isinstance(data, list | tuple):
        if data and all(isinstance(item, str | Path) for item in data):
            return _from_strings(data)
        return Records(source=data)
    is_number = isinstance(data, torch.Tensor | np.ndarray) and data.ndim == 0
    has_rows = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, bytes | Mapping) or is_number or not has_rows:
        raise DataError(
            f"data of type {type(data).__name__}: give a path, a list of paths, texts or rows, a datasets.Dataset "
            "(one split, not streamed), a torch data set with a length, or a list of token-id sequences"
        )
    return Records(source=data)


def _from_strings(items: Sequence[str | Path]) -> Records:
    are_files = [isinstance(item, Path) or _exists(item) for item in items]
    if all(are_files):
        return _from_paths(items)
    if any(are_files):
        odd = items[are_files.index(False)]
        raise DataError(
            f"a list of strings must be all files or all texts; this one has both: {_short(odd)} is not a file"
        )
    return Records(source=items, remark=" (the strings were taken as texts, since none names an existing file)")


def _from_paths(paths: Sequence[str | Path]) -> Records:
    for path in paths:
        if not _exists(path):
            hint = " (to give a text, put it in a list)" if isinstance(path, str) else ""
            raise MissingFileError(f"no such file: {_short(path)}{hint}")
    if len(paths) == 1 and Path(paths[0]).is_dir():
        return Records(source=load_folder(Path(paths[0])), name=str(paths[0]))
    found: list[Any] = []
    lines: list[tuple[Path, int | None]] = []
    for path in map(Path, paths):
        before = len(found)
        for line, record in _file(path):
            found.append(record)
            lines.append((path, line))
        if len(found) == before:
            raise DataError(f"{path} has no row: it is empty")
    return Records(source=found, lines=lines, name=", ".join(map(str, paths[:3])))


def _file(path: Path) -> Iterator[tuple[int | None, Any]]:
    if path.is_dir():
        yield from enumerate(load_folder(path))
        return
    refuse_other_formats(path)
    if path.suffix.lower() == ".jsonl":
        yield from read_jsonl(path)
        return
    yield None, read_text(path)


def load_folder(path: Path) -> datasets.Dataset:
    """A data set that ``datasets`` saved, one split. Raises DataError."""
    import datasets

    if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        raise DataError(f"{path} is a folder: name the files in it, or a folder that datasets' save_to_disk wrote")
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets' errors share no other base class
        raise DataError(f"{path} cannot be loaded as a saved data set: {reason(error)}") from error
    if not isinstance(found, datasets.Dataset):
        raise DataError(
            f"{path} holds several splits ({', '.join(found)}): name the folder of one, such as {path}/train"
        )
    return found


def _exists(path: str | Path) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a NUL, or half a surrogate pair: a text, not a name
        return False


def _short(text: str | Path) -> str:
    shown = str(text)
    return repr(shown if len(shown) <= 60 else f"{shown[:57]}...")
