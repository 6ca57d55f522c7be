"""Labels and numbers of rows: as the model's own loss takes them, or one error that names the row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo

from lpc.data import Collator, RowFormat, open_rows
from lpc.evaluation import quality
from passes.errors import DataError

CLASSIFIER, ALONG, ENDS = "bert-sequence-classification", "bert-token-classification", "bert-question-answering"
MANY = "multi_label_classification"


def format_of(name: str, **changes: object) -> RowFormat:
    case = zoo.ZOO[name]
    return RowFormat.of(case.model_class, case.config(**changes))


def labels_of(name: str, labels: object, **changes: object) -> torch.Tensor:
    return open_rows([{"input_ids": [5, 6, 7], "labels": labels}], format_of(name, **changes))[0]["labels"]


@pytest.mark.parametrize(
    ("labels", "changes"),
    [
        ([1, 0, 1], {"problem_type": MANY}),
        ([True, False, True], {"problem_type": MANY}),
        (np.array([1, 0, 1], np.int8), {"problem_type": MANY}),
        (torch.tensor([1, 0, 1]), {"problem_type": MANY}),
        ([1.0, 0.0, 1.0], {"problem_type": MANY}),
        ([1, 0, 1], {}),
        ([1.0, 0.0, 1.0], {}),
    ],
)
def test_one_label_a_class_becomes_floats_whatever_they_were(labels: object, changes: dict[str, Any]) -> None:
    found = labels_of(CLASSIFIER, labels, num_labels=3, **changes)
    assert found.dtype is torch.float32
    assert found.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("labels", [3, 3.0, [3], torch.tensor(3)])
def test_whole_numbers_of_a_regression_become_floats(labels: object) -> None:
    found = labels_of(CLASSIFIER, labels, num_labels=1)
    assert found.dtype is torch.float32
    assert found.flatten().tolist() == [3.0]


@pytest.mark.parametrize(
    ("name", "changes", "labels"),
    [
        (CLASSIFIER, {"num_labels": 3, "problem_type": MANY}, [[1, 0, 0], [0, 1, 1]]),
        (CLASSIFIER, {"num_labels": 3, "problem_type": MANY}, [[0.5, 0.0, 1.0], [True, False, True]]),
        (CLASSIFIER, {"num_labels": 3}, [[1, 0, 0], [0, 1, 1]]),
        (CLASSIFIER, {"num_labels": 1}, [2, -1]),
        (CLASSIFIER, {"num_labels": 2, "problem_type": "regression"}, [[2, 1], [0, 3]]),
        (CLASSIFIER, {"num_labels": 3, "problem_type": "single_label_classification"}, [2, 1]),
        (CLASSIFIER, {"num_labels": 3}, [[2], [1]]),
        (ALONG, {}, [[1, -100, 2], [0, 0, 3]]),
    ],
)
def test_what_is_read_gives_a_finite_loss_and_gradients(name: str, changes: dict[str, Any], labels: Any) -> None:
    """transformers' own loss, forward and backward: what it cannot take may not come out of the reader."""
    case = zoo.ZOO[name]
    model = case.model_class(case.config(**changes))
    data = [{"input_ids": [5, 6, 7], "labels": each} for each in labels]
    rows = open_rows(data, RowFormat.of(type(model), model.config))
    batch = Collator.of(model.config, rows.format.task)(list(rows))
    loss = model(**batch).loss
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    found = quality(model.eval(), data).loss
    assert math.isfinite(found)
    assert found == pytest.approx(model(**batch).loss.item(), rel=1e-5)


FAULTS: list[tuple[str, dict[str, Any], object, str]] = [
    (CLASSIFIER, {"problem_type": MANY}, [1, 0], r"has labels \[2\], and the model needs one of 0 and 1 a class: 5"),
    (CLASSIFIER, {"problem_type": MANY}, 1, r"has labels \[\], and the model needs one of 0 and 1 a class"),
    (CLASSIFIER, {"problem_type": MANY}, [1, 0, 2, 0, 0], "has label 2.0, and where every class has its own"),
    (CLASSIFIER, {"problem_type": MANY}, [1, 0, -100, 0, 0], "has label -100.0"),
    (CLASSIFIER, {}, [1, 0], "labels has 2 values, and the model takes one a row"),
    (CLASSIFIER, {}, 1.0, "labels holds 1.0: labels that name a class or place are integers"),
    (CLASSIFIER, {}, float("nan"), "labels holds a number that is not finite"),
    (CLASSIFIER, {"num_labels": 1}, [1.0, 2.0], "has 2 labels, and the model has 1 outputs"),
    (CLASSIFIER, {"num_labels": 1}, float("inf"), "not finite"),
    (CLASSIFIER, {}, 2**64 + 1, "labels is a int, not numbers"),
    (CLASSIFIER, {}, 2**63, "labels holds 9223372036854775808, a number beyond 64 bits"),
    (CLASSIFIER, {}, [], "labels .* integers"),
    (ALONG, {}, [1, 2], "has 2 labels and 3 input_ids: each token needs its own"),
    (ALONG, {}, [1.0, 2.0, 3.0], "are integers"),
    (ALONG, {}, 1, "has 1 labels and 3 input_ids"),
    ("qwen2", {}, [1, 2, 300], "has label 300, and the model has labels 0 to 271"),
    ("qwen2", {}, [1, 2, 3, 4], "has 4 labels and 3 input_ids"),
]


@pytest.mark.parametrize(("name", "changes", "labels", "message"), FAULTS)
def test_labels_that_the_loss_cannot_take_are_refused(
    name: str, changes: dict[str, Any], labels: object, message: str
) -> None:
    with pytest.raises(DataError, match=f"row 0 of the data.*{message}"):
        labels_of(name, labels, **changes)


@pytest.mark.parametrize("value", [1.0, [1], "1", None])
def test_ends_of_an_answer_are_whole_numbers(value: object) -> None:
    row = {"input_ids": [5, 6], "start_positions": value, "end_positions": 1}
    if value == [1]:
        assert open_rows([row], format_of(ENDS))[0]["start_positions"].tolist() == [1]
        return
    with pytest.raises(DataError, match="row 0 of the data: start_positions"):
        open_rows([row], format_of(ENDS))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [5.0, 6.0]}, "input_ids holds fractions or floats: token ids are whole numbers"),
        ({"input_ids": torch.tensor([5.0])}, "input_ids holds fractions or floats"),
        ({"input_ids": [5, 1e400]}, "input_ids holds fractions or floats"),
        ({"input_ids": [True, False]}, "input_ids holds truth values"),
        ({"input_ids": [5, True]}, "input_ids holds truth values"),
        ({"input_ids": torch.tensor([True])}, "input_ids holds truth values"),
        ({"input_ids": [5, 10**30]}, "input_ids is a list, not numbers"),
        ({"input_ids": [5, None]}, "input_ids is a list, not numbers"),
        ({"input_ids": torch.tensor([1j])}, "a tensor of torch.complex64"),
        ({"input_ids": [5, 6], "attention_mask": [1]}, "has 1 attention_mask and 2 input_ids"),
        ({"input_ids": [5, 6], "label": 1, "labels": 1}, "has labels under two names"),
    ],
)
def test_numbers_that_are_not_what_they_are_for_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"row 0 of the data.*{message}"):
        open_rows([{"labels": 1, **row}], format_of(CLASSIFIER))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_an_image_with_a_number_that_is_not_finite_is_refused(value: float) -> None:
    image = np.zeros((3, 16, 16))
    image[1, 2, 3] = value
    with pytest.raises(DataError, match="pixel_values holds a number that is not finite"):
        open_rows([{"pixel_values": image, "labels": 1}], format_of("vit"))


def test_a_row_of_a_file_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"input_ids": [5], "label": 1}, {"input_ids": [5.5], "label": 1}]
    path.write_text("\n".join([json.dumps(rows[0]), "", json.dumps(rows[1])]))
    found = open_rows(path, format_of(CLASSIFIER))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3: input_ids holds fractions"):
        list(found)
