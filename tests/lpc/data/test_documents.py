"""Files of text: what can be wrong with their bytes and lines is one error with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lpc.data import read_documents, read_jsonl, read_text
from lpc.data.documents import listed
from passes.errors import DataError, MissingFileError


def test_byte_order_mark_and_line_ends_of_any_system_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text(tmp_path / "a.txt") == "one\ntwo\nthree\n"
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one\\r\\n"}\r\n\r\n{"text": "two"}\r\n')
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [(1, {"text": "one\r\n"}), (3, {"text": "two"})]


def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    row = {"text": "a\u2028b\u0085c\x0bd"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [(1, row)]


def test_one_long_line_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "word " * 400_000}))
    assert [len(text) for text in read_documents(tmp_path / "a.jsonl")] == [2_000_000]


FAULTS: dict[str, tuple[bytes, str]] = {
    "gz": (gzip.compress(b'{"text": "a"}'), "is compressed by gzip: decompress it first"),
    "zip": (b"PK\x03\x04\x14\x00\x00\x00", "is a zip archive"),
    "parquet": (b"PAR1\x15\x04\x15\x00", "is a parquet file"),
    "utf-16": ('{"text": "a"}'.encode("utf-16"), "is UTF-16 text: convert it to UTF-8"),
    "utf-32": ('{"text": "a"}'.encode("utf-32"), "is UTF-32 text: convert it to UTF-8"),
    "utf-16 without a mark": ('{"text": "a"}'.encode("utf-16-le"), r"not UTF-8 text \(byte 1 is NUL\)"),
    "latin-1": (b'{"text": "a"}\n{"text": "caf\xe9"}', r"line 2 is not UTF-8 text \(byte 13\)"),
    "half a pair": (b'{"text": "a"}\n{"text": "a\\ud83d"}', "line 2: `text` has half of a surrogate pair"),
    "raw half a pair": (b'{"text": "\xed\xa0\xbd"}', "line 1 is not UTF-8 text"),
    "huge number": (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "line 1: the JSON holds a number too long"),
    "deep": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 1: the JSON is nested too deeply"),
    "deep objects": (b'{"a":' * 100_000, "line 1: the JSON is nested too deeply"),
    "cut": (b'{"text": "a"}\n{"text": "b', "line 2: not JSON"),
    "number": (b"3", "line 1: a JSON object a line is needed, this is a int"),
    "nan": (b"NaN", "line 1: a JSON object a line is needed, this is a float"),
    "list": (b'[{"text": "a"}]', "line 1: a JSON object a line is needed, this is a list"),
    "pretty": (b'{\n "text": "a"\n}', "line 1: not JSON"),
    "empty": (b"", "holds no text"),
    "blank": (b"\n \n\r\n", "holds no text"),
    "mark alone": (b"\xef\xbb\xbf", "holds no text"),
    "bytes": (bytes(range(256)), "is not UTF-8 text"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_jsonl_file_is_one_error_that_names_it(fault: str, tmp_path: Path) -> None:
    content, message = FAULTS[fault]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.jsonl.*{message}"):
        read_documents(path)


def test_text_that_begins_like_another_format_is_text(tmp_path: Path) -> None:
    for text in ("BZh is short for something", "PAR1 and PAR2", "PK"):
        (tmp_path / "a.txt").write_text(text)
        assert read_text(tmp_path / "a.txt") == text


def test_a_name_that_no_file_can_have_is_an_error() -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_text(Path("a\0b"))
    with pytest.raises(MissingFileError):
        read_text(Path("absent.txt"))


def test_names_from_a_file_are_shown_short_and_harmless() -> None:
    assert listed([]) == "nothing"
    assert listed(["a", "b"]) == "a, b"
    assert listed(["\x1b[31mred", "\ud800"]) == r"\x1b[31mred, \ud800"
    assert len(listed(["x" * 10**6] * 100)) < 600
