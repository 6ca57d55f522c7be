"""Rows: every form that they come in, and every fault that they can have."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import zoo

from lpc.data import RowFormat, open_rows, split_rows
from passes.errors import DataError, MissingFileError

ROWS = [{"input_ids": [5, 6, 7][: 1 + i % 3], "labels": i % 5} for i in range(12)]


def format_of(name: str) -> RowFormat:
    case = zoo.ZOO[name]
    return RowFormat.of(case.model_class, case.config())


@pytest.fixture(scope="module")
def classifier() -> RowFormat:
    return format_of("bert-sequence-classification")


class Map(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value) for name, value in ROWS[index].items()}


def _jsonl(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("form", ["list", "dataset", "torch", "numpy", "jsonl", "files", "folder", "label"])
def test_every_form_gives_the_same_rows(form: str, classifier: RowFormat, tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(str(tmp_path / "saved"))
    data = {
        "list": ROWS,
        "dataset": dataset,
        "torch": Map(),
        "numpy": [{name: np.asarray(value) for name, value in row.items()} for row in ROWS],
        "jsonl": _jsonl(tmp_path, ROWS),
        "files": [str(_jsonl(tmp_path, ROWS))],
        "folder": tmp_path / "saved",
        "label": dataset.rename_column("labels", "label"),
    }[form]
    rows = open_rows(data, classifier)
    assert len(rows) == 12
    for found, expected in zip(rows, ROWS, strict=True):
        assert {name: value.tolist() for name, value in found.items()} == expected
        assert all(value.dtype == torch.int64 for value in found.values())


def test_images_are_read_as_float32() -> None:
    row = {"pixel_values": np.zeros((3, 16, 16)), "labels": 2}
    rows = open_rows(datasets.Dataset.from_list([row]), format_of("vit"))
    assert rows[0]["pixel_values"].dtype == torch.float32
    assert rows[0]["pixel_values"].shape == (3, 16, 16)


def test_a_transform_of_a_data_set_is_applied_and_not_replaced(classifier: RowFormat) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.set_transform(lambda batch: {**batch, "input_ids": [[9, 9] for _ in batch["input_ids"]]})
    assert open_rows(dataset, classifier)[3]["input_ids"].tolist() == [9, 9]


FAULTS = [
    ({"input_ids": [5], "labels": 1, "idx": 3, "sentence": "a"}, "has idx, sentence, which BertForSequenceClass"),
    ({"inputs_embeds": [[0.5]], "labels": 1}, "row 0 of the data has no input_ids, by which BertForSequenceClass"),
    ({"input_ids": [5]}, "row 0 of the data has no labels: the loss of BertForSequenceClassification needs it"),
    ({"input_ids": [5], "labels": 5}, "row 0 of the data has label 5, and the model has labels 0 to 4"),
    ({"input_ids": [5], "labels": -1}, "label -1"),
    ({"input_ids": [5, 300], "labels": 0}, "token 300, outside the model's vocabulary of 272"),
    ({"input_ids": [5, -2], "labels": 0}, "token -2"),
    ({"input_ids": [5] * 129, "labels": 0}, "129 tokens and the model's context is 128"),
    ({"input_ids": [], "labels": 0}, "one sequence of tokens"),
    ({"input_ids": [[5], [6]], "labels": 0}, "one sequence of tokens"),
    ({"input_ids": [[5], [6, 7]], "labels": 0}, "input_ids is ragged"),
    ({"input_ids": "a text", "labels": 0}, "input_ids is a str, not numbers"),
    ({"input_ids": None, "labels": 0}, "input_ids is a NoneType"),
    ([1, 2], "row 0 of the data is a list, not a dict"),
]


@pytest.mark.parametrize(("row", "message"), FAULTS)
def test_a_row_that_does_not_suit_the_model_is_refused(row: object, message: str, classifier: RowFormat) -> None:
    with pytest.raises(DataError, match=message):
        open_rows([row], classifier)


def test_a_fault_in_a_later_row_names_that_row(classifier: RowFormat) -> None:
    rows = open_rows([*ROWS, {"input_ids": [5]}], classifier)
    with pytest.raises(DataError, match="row 12 of the data has no labels"):
        list(rows)


def test_question_answering_needs_both_ends() -> None:
    with pytest.raises(DataError, match="no end_positions: the loss of BertForQuestionAnswering"):
        open_rows([{"input_ids": [5, 6], "start_positions": 0}], format_of("bert-question-answering"))


def test_labels_that_are_ignored_are_no_fault() -> None:
    rows = open_rows([{"input_ids": [5, 6], "labels": [-100, 4]}], format_of("bert-token-classification"))
    assert rows[0]["labels"].tolist() == [-100, 4]


def test_labels_of_a_regression_may_be_any_number() -> None:
    case = zoo.ZOO["bert-sequence-classification"]
    rows = open_rows([{"input_ids": [5], "labels": -7}], RowFormat.of(case.model_class, case.config(num_labels=1)))
    assert rows[0]["labels"].tolist() == -7


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no row"),
        (iter(ROWS), "data of type list_iterator: give a path"),
        (torch.zeros(3, 4), "needs rows with its inputs and labels"),
        (datasets.Dataset.from_dict({"text": ["a"], "labels": [0]}), "the data set has text, which"),
    ],
)
def test_what_holds_no_rows_is_refused(data: object, message: str, classifier: RowFormat) -> None:
    with pytest.raises(DataError, match=message):
        open_rows(data, classifier)


def test_files_that_hold_no_rows_are_refused(classifier: RowFormat, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(DataError, match=r"needs rows with its inputs, input_ids, labels: give a \.jsonl"):
        open_rows(tmp_path / "a.txt", classifier)
    with pytest.raises(DataError, match="needs rows"):
        open_rows([str(tmp_path / "a.txt")], classifier)
    with pytest.raises(DataError, match="is a folder: name the files in it"):
        open_rows(tmp_path, classifier)
    for absent in ("absent.jsonl", "a sentence that is no file", "x" * 5000):
        with pytest.raises(MissingFileError, match="no such file"):
            open_rows(absent, classifier)
    both = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    both.save_to_disk(str(tmp_path / "both"))
    with pytest.raises(DataError, match=r"several splits \(train\): name the folder of one"):
        open_rows(tmp_path / "both", classifier)


def test_rows_sorted_by_label_are_held_out_across_labels(classifier: RowFormat) -> None:
    data = [{"input_ids": [5, i], "labels": i // 40} for i in range(200)]
    train, heldout = split_rows(open_rows(data, classifier), 0.1)
    assert (len(train), len(heldout)) == (180, 20)
    assert len({int(row["labels"]) for row in heldout}) >= 4
    tokens = [[int(row["input_ids"][1]) for row in part] for part in (train, heldout)]
    assert sorted(tokens[0] + tokens[1]) == list(range(200))
    again = split_rows(open_rows(data, classifier), 0.1)[1]
    assert [int(row["input_ids"][1]) for row in again] == tokens[1]


def test_a_subset_of_a_subset_counts_from_the_first(classifier: RowFormat) -> None:
    rows = open_rows(ROWS, classifier).subset([4, 6, 8]).subset([2])
    assert [int(row["labels"]) for row in rows] == [8 % 5]


def test_one_row_cannot_be_split(classifier: RowFormat) -> None:
    with pytest.raises(DataError, match="one row cannot be split"):
        split_rows(open_rows(ROWS[:1], classifier), 0.5)
