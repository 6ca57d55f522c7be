"""Documents on disk: text files and jsonl, split where one document ends.

Every error names the file and, where there is one, the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from passes.errors import DataError, MissingFileError

__all__ = ["DOCUMENT_END", "read_documents", "read_jsonl", "read_text", "split_documents"]

DOCUMENT_END = "<|endoftext|>"
"""Marks the end of a document inside a text (the TinyStories convention); it is never tokenized as text."""

_NOT_TEXT = frozenset({".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zip", ".zst", ".xz", ".bz2", ".pt"})


def read_documents(path: Path) -> list[str]:
    """The documents of a file: each ``text`` field of a ``.jsonl``, or the whole text; both split at `DOCUMENT_END`.

    Raises `MissingFileError`, or `DataError` for a folder, a file that is not UTF-8 text, a bad jsonl line, and a
    file with nothing but white space.
    """
    if path.suffix.lower() in _NOT_TEXT:
        raise DataError(
            f"{path}: {path.suffix} files are not read; convert it to .jsonl with a `text` field, or to .txt"
        )
    texts = _jsonl_texts(path) if path.suffix.lower() == ".jsonl" else [read_text(path)]
    documents = split_documents(texts)
    if not documents:
        raise DataError(f"{path} holds no text: it is empty or has white space only")
    return documents


def split_documents(texts: Iterable[str]) -> list[str]:
    """Split at `DOCUMENT_END`; blank documents go, and so does the white space around a marker."""
    documents: list[str] = []
    for text in texts:
        parts = [part.strip() for part in text.split(DOCUMENT_END)] if DOCUMENT_END in text else [text]
        documents += [part for part in parts if part.strip()]
    return documents


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """``(line number, object)`` of every line that is not blank; a line that is no JSON object is a `DataError`."""
    # str.splitlines would also split at U+2028, which JSON strings may contain
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a JSON object is needed, this is a {type(row).__name__}")
        yield number, row


def _jsonl_texts(path: Path) -> Iterator[str]:
    for number, row in read_jsonl(path):
        if "text" not in row:
            raise DataError(f"{path}, line {number}: no `text` field (it has: {', '.join(row) or 'nothing'})")
        text = row["text"]
        if not isinstance(text, str):
            raise DataError(f"{path}, line {number}: `text` is a {type(text).__name__}, not a string")
        yield text


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises MissingFileError, DataError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingFileError(f"no such file: {path}") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder: name the text files in it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): convert it to UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
