"""What data are is decided once: every kind in every container, and what is none of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import zoo
from conftest import build_tokenizer

from lpc.data import Reading, RowFormat, Rows, TokenBlocks, read_data
from lpc.data import records as records_module
from lpc.data.readers import READERS, reader_of
from lpc.data.records import open_records
from lpc.options import InstructionFormat
from passes.errors import DataError, LpcError, MissingFileError, OptionError

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
HI, YES = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("text", {"text": "The cat sat on the mat."}),
    "text with labels": ("text", {"text": "The cat sat.", "label": 1}),
    "token ids": ("token ids", {"input_ids": [5, 6, 7, 8]}),
    "token ids with a mask": ("token ids", {"input_ids": [5, 6, 7, 8], "attention_mask": [1, 1, 1, 1]}),
    "rows": ("rows", {"input_ids": [5, 6], "labels": [5, 6]}),
    "alpaca": ("instructions", {"instruction": "Say yes.", "input": "", "output": "Yes"}),
    "dolly": ("instructions", {"instruction": "Say yes.", "context": "now", "response": "Yes"}),
    "prompt and completion": ("instructions", {"prompt": "Hi", "completion": "Yes"}),
    "TRL's messages": ("instructions", {"prompt": [HI], "completion": [YES]}),
    "messages": ("instructions", {"messages": [HI, YES]}),
    "ShareGPT": (
        "instructions",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]},
    ),
}
LENGTHS = {"text": 16, "token ids": 16, "rows": None, "instructions": 256}


def reading(name: str = "qwen2", **options: Any) -> Reading:
    case, tokenizer = zoo.ZOO[name], build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    rows = replace(RowFormat.of(case.model_class, case.config()), context=512)
    return Reading(rows=rows, tokenizer=tokenizer, **options)


class Map(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]


def _saved(rows: list[dict[str, Any]], folder: Path) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def _jsonl(rows: list[dict[str, Any]], folder: Path, name: str = "a.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


CONTAINERS: dict[str, Callable[[list[dict[str, Any]], Path], object]] = {
    "list": lambda rows, _: rows,
    "tuple": lambda rows, _: tuple(rows),
    "data set": lambda rows, _: datasets.Dataset.from_list(rows),
    "torch": lambda rows, _: Map(rows),
    "jsonl": _jsonl,
    "name": lambda rows, folder: str(_jsonl(rows, folder)),
    "files": lambda rows, folder: [_jsonl(rows[:4], folder), _jsonl(rows[4:], folder, "b.JSONL")],
    "folder": _saved,
}


def _plain(found: TokenBlocks | Rows) -> object:
    if isinstance(found, TokenBlocks):
        return found.tensor.tolist()
    return [{name: value.tolist() for name, value in row.items()} for row in found]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_data_is_the_same_in_every_container(kind: str, tmp_path: Path) -> None:
    expected, row = KINDS[kind]
    found = {}
    for name, pack in CONTAINERS.items():
        folder = tmp_path / name
        folder.mkdir()
        data, how = pack([row] * 6, folder), reading(sequence_length=LENGTHS[expected])
        assert reader_of(open_records(data), how).name == expected, name
        found[name] = _plain(read_data(data, how))
    assert all(value == found["list"] for value in found.values())


@pytest.mark.parametrize("form", [["a text", "b"], [[1, 2], [3, 4]], torch.ones(2, 3, dtype=torch.int64)])
def test_texts_and_token_ids_without_names_are_blocks(form: object) -> None:
    assert isinstance(read_data(form, reading(sequence_length=2)), TokenBlocks)


def test_the_readers_are_a_closed_set_and_each_takes_something() -> None:
    how, names = reading(), {expected for expected, _ in KINDS.values()}
    assert {reader.name for reader in READERS} - {"sentences"} == names  # which are for models that embed
    for expected, row in KINDS.values():
        assert next(reader.name for reader in READERS if reader.takes(row, how)) == expected


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    whole = Path.read_bytes

    def counted(path: Path) -> bytes:
        opened.append(path)
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    for kind, (expected, row) in KINDS.items():
        path = _jsonl([row] * 6, tmp_path, f"{kind}.jsonl")
        opened.clear()
        read_data(path, reading(sequence_length=LENGTHS[expected]))
        assert opened == [path], kind


def test_text_beside_instructions_is_text_unless_a_format_is_given(caplog: pytest.LogCaptureFixture) -> None:
    data = [{"text": "all of it", "instruction": "a", "output": "b"}] * 3
    assert isinstance(read_data(data, reading(sequence_length=4)), TokenBlocks)
    assert "give DataOptions(instructions=InstructionFormat())" in caplog.text
    assert isinstance(read_data(data, reading(instructions=InstructionFormat(template="{instruction}"))), Rows)


def test_plain_text_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_data([{"text": "all of it"}], reading(sequence_length=4))
    assert not caplog.records


@pytest.mark.parametrize("data", [["a text"], [{"a": "b"}], [[1, 2]], [{"input_ids": [1], "prompt": "a"}]])
def test_a_format_for_data_that_are_no_instructions_is_refused(data: object) -> None:
    with pytest.raises(DataError, match=r"the columns .* or messages or conversations.* found: "):
        read_data(data, reading(instructions=InstructionFormat()))


def test_a_format_for_a_model_that_reads_rows_is_refused() -> None:
    with pytest.raises(OptionError, match="instructions are for causal language models"):
        reading("bert", instructions=InstructionFormat())


def test_rows_keep_their_length() -> None:
    with pytest.raises(OptionError, match="sequence_length is for text, and the data are rows"):
        read_data([{"input_ids": [5], "labels": [5]}], reading(sequence_length=8))
    with pytest.raises(OptionError, match="sequence_length 513 is longer than the model's context of 512"):
        read_data(["a text"], reading(sequence_length=513))


def test_rows_of_the_model_stay_rows_beside_prompts() -> None:
    row = {"input_ids": [5, 6], "labels": [5, 6], "prompt": "a", "completion": "b"}
    with pytest.raises(DataError, match="row 0 of the data has prompt, completion, which Qwen2ForCausalLM"):
        read_data([row], reading())


def test_other_models_read_rows_alone() -> None:
    how = reading("bert-sequence-classification")
    for data, message in (
        ([{"text": "a", "label": 1}], "row 0 of the data has text, which"),
        ([{"prompt": "a", "completion": "b"}], "has prompt, completion, which"),
        ([[1, 2]], "row 0 of the data is a list, not a dict"),
    ):
        assert reader_of(open_records(data), how).name == "rows"
        with pytest.raises(DataError, match=message):
            read_data(data, how)
    with pytest.raises(MissingFileError, match="no such file or folder: a text"):
        read_data(["a text"], how)


NOTHING: list[tuple[object, type[LpcError], str]] = [
    ([{"body": "a"}], DataError, "row 0 of the data is a dict with the columns body: .* reads text"),
    ([{}], DataError, "the columns nothing"),
    ([None], DataError, "row 0 of the data is a NoneType"),
    ([3], DataError, "row 0 of the data is a int"),
    ([b"bytes"], DataError, "other than token ids|is a bytes"),
    ([], DataError, "the data has no row"),
    ({}, DataError, "data of type dict"),
    (None, DataError, "data of type NoneType"),
    (3, DataError, "data of type int"),
    (b"a", DataError, "data of type bytes"),
    (torch.tensor(3), DataError, "row 0 of the data|data of type Tensor"),
    ({"train": [1]}, DataError, "one split"),
    (datasets.DatasetDict({"a": datasets.Dataset.from_list([{"text": "a"}])}), DataError, "one split"),
    ("absent.jsonl", MissingFileError, "no such file"),
    ("a\0b", MissingFileError, "no such file"),
    ("x" * 5000, MissingFileError, "no such file"),
    ([{"text": "a"}, {"body": "a"}], DataError, r"row 1 of the data: no `text` field \(it has: body\)"),
    ([{"text": "a"}, 3], DataError, "row 1 of the data: `text` is a int"),
    ([{"text": "a\ud800"}], DataError, "row 0 of the data: `text` has half of a surrogate pair"),
    (["a", "b\udfff"], DataError, "row 1 of the data: `text` has half of a surrogate pair"),
    ([{"prompt": "a", "completion": "b\ud83d"}], DataError, "`completion` has half of a surrogate pair"),
    ([{"input_ids": [1, 2.0]}], DataError, "row 0 of the data is a sequence that holds something other than"),
    ([{"input_ids": [1, True]}], DataError, "other than token ids"),
    ([{"input_ids": [1, 10**30]}], DataError, "it is beyond 64 bits"),
    ([{"input_ids": [1, 2]}, {"input_ids": [300]}], DataError, "row 1 of the data: token id 300 is outside"),
    ([[1, 2], [float("nan")]], DataError, "row 1 of the data is a sequence"),
    ([{"prompt": "a" * 2_000_000, "completion": "b"}], DataError, "has 2000001 characters, and a row at most"),
]


@pytest.mark.parametrize("case", range(len(NOTHING)))
def test_what_cannot_be_read_is_one_error_that_says_where(case: int) -> None:
    data, error, message = NOTHING[case]
    with pytest.raises(error, match=message):
        read_data(data, reading())


def test_files_of_two_kinds_are_an_error_that_names_the_second(tmp_path: Path) -> None:
    first = _jsonl([{"prompt": "a", "completion": "b"}], tmp_path)
    second = _jsonl([{"text": "a"}], tmp_path, "b.jsonl")
    with pytest.raises(DataError, match=r"b\.jsonl, line 1: `prompt` is missing \(it has: text\)"):
        read_data([first, second], reading())
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: no `text` field"):
        read_data([second, first], reading())


def test_an_empty_file_among_others_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"b\.jsonl has no row"):
        read_data([_jsonl([{"text": "a"}], tmp_path), tmp_path / "b.jsonl"], reading())


def test_records_are_not_opened_twice() -> None:
    found = open_records(["a text"])
    assert isinstance(found, records_module.Records)
    assert open_records(found) is found
    assert isinstance(found.first, str)
    assert not isinstance(found.first, Mapping)
