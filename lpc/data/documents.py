"""Documents on disk: text files and jsonl, split where one document ends.

Every error names the file and, where there is one, the line.
"""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from passes.errors import DataError, MissingFileError

__all__ = [
    "DOCUMENT_END",
    "checked_text",
    "listed",
    "read_documents",
    "read_jsonl",
    "read_text",
    "refuse_other_formats",
    "split_documents",
]

DOCUMENT_END = "<|endoftext|>"
"""Marks the end of a document inside a text (the TinyStories convention); it is never tokenized as text."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_NOT_TEXT = frozenset({".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zip", ".zst", ".xz", ".bz2", ".pt"})

_SIGNATURES = {
    b"\x1f\x8b": "compressed by gzip: decompress it first",
    b"BZh": "compressed by bzip2: decompress it first",
    b"\xfd7zXZ": "compressed by xz: decompress it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: decompress it first",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"PAR1": "a parquet file: convert it to .jsonl",
    b"\xff\xfe\0\0": "UTF-32 text: convert it to UTF-8",
    b"\0\0\xfe\xff": "UTF-32 text: convert it to UTF-8",
    b"\xff\xfe": "UTF-16 text: convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text: convert it to UTF-8",
}
"""How files begin that are taken for text by mistake; none of it can begin a text in UTF-8 but by chance."""


def read_documents(path: Path) -> list[str]:
    """The documents of a file: each ``text`` field of a ``.jsonl``, or the whole text; both split at `DOCUMENT_END`.

    Raises `MissingFileError`, or `DataError` for a folder, a file that is not UTF-8 text, a bad jsonl line, and a
    file with nothing but white space.
    """
    refuse_other_formats(path)
    texts = _jsonl_texts(path) if path.suffix.lower() == ".jsonl" else [read_text(path)]
    documents = split_documents(texts)
    if not documents:
        raise DataError(f"{path} holds no text: it is empty or has white space only")
    return documents


def refuse_other_formats(path: Path) -> None:
    """Raises DataError for a file that its suffix says is neither text nor jsonl."""
    if path.suffix.lower() in _NOT_TEXT:
        raise DataError(
            f"{path}: {path.suffix} files are not read; convert it to .jsonl with a `text` field, or to .txt"
        )


def split_documents(texts: Iterable[str]) -> list[str]:
    """Split at `DOCUMENT_END`; blank documents go, and so does the white space around a marker."""
    documents: list[str] = []
    for text in texts:
        parts = [part.strip() for part in text.split(DOCUMENT_END)] if DOCUMENT_END in text else [text]
        documents += [part for part in parts if part.strip()]
    return documents


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """``(line number, object)`` of every line that is not blank; a line that is no JSON object is a `DataError`.

    A line ends at a line feed alone: JSON strings may hold U+2028, at which str.splitlines would split too.
    """
    for number, line in enumerate(io.BytesIO(_read(path)), start=1):
        if line.strip():
            yield number, _object(path, number, line)


def _object(path: Path, number: int, line: bytes) -> dict[str, object]:
    place = f"{path}, line {number}"
    try:
        row = json.loads(_decoded(path, line, f", line {number}"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: not JSON ({error.msg}, column {error.colno}); .jsonl has an object a line"
        ) from error
    except RecursionError as error:
        raise DataError(f"{place}: the JSON is nested too deeply to be read") from error
    except DataError:
        raise
    except ValueError as error:  # Python reads no integer of more than 4300 digits
        raise DataError(f"{place}: the JSON holds a number too long to be read") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a JSON object a line is needed, this is a {type(row).__name__}")
    return row


def _jsonl_texts(path: Path) -> Iterator[str]:
    for number, row in read_jsonl(path):
        if "text" not in row:
            raise DataError(f"{path}, line {number}: no `text` field (it has: {listed(row)})")
        yield checked_text(f"{path}, line {number}", "text", row["text"])


def checked_text(where: str, name: str, value: object) -> str:
    """The value if it is text that can be tokenized. Raises DataError, which says where it stands."""
    if not isinstance(value, str):
        raise DataError(f"{where}: `{name}` is a {type(value).__name__}, not a string")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: `{name}` has half of a surrogate pair (character {error.start}), which is no text: "
                "write the whole character"
            ) from error
    return value


def listed(names: Iterable[object]) -> str:
    """Names from a file for a message: not too many, none too long, and nothing that a terminal would obey."""
    found = [str(name) for name in names]
    shown = [name if name.isprintable() else repr(name)[1:-1] for name in (name[:40] for name in found[:12])]
    return ", ".join([*shown, *(["..."] if len(found) > 12 else [])]) or "nothing"


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; its lines may end as on any system. Raises MissingFileError, DataError."""
    return _decoded(path, _read(path), "").replace("\r\n", "\n").replace("\r", "\n")


def _read(path: Path) -> bytes:
    """The bytes of a file that may be text, without a byte order mark. Raises MissingFileError, DataError."""
    try:
        if stat.S_ISCHR(path.stat().st_mode) or stat.S_ISBLK(path.stat().st_mode):
            raise DataError(f"{path} is a device, whose text may never end: name a file")
        found = path.read_bytes()
    except DataError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"no such file: {path}") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder: name the text files in it") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    for signature, what in _SIGNATURES.items():
        if found.startswith(signature) and not _is_text(found[:64]):
            raise DataError(f"{path} is {what}")
    if b"\0" in found:
        raise DataError(f"{path} is not UTF-8 text (byte {found.index(0)} is NUL): convert it to UTF-8")
    return found.removeprefix(BYTE_ORDER_MARK)


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and b"\0" not in head
    return b"\0" not in head


def _decoded(path: Path, content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}{place} is not UTF-8 text (byte {error.start}): convert it to UTF-8") from error
