"""Rows of tasks: lm-eval's prompts, or one error with file and line."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import datasets
import pytest
from lm_tasks import BEGINNINGS, CHOICES, FUNCTIONS, HELLASWAG, TASK_YAML, write_rows

from lpc.evaluation import evaluate, harness
from lpc.evaluation.tasks import read_rows
from lpc.options import EvaluateOptions
from passes.errors import (
    DataError,
    OptionError,
)


def test_two_tasks_of_one_name_raise(tiny_model_folder: Path, tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "same.jsonl", CHOICES))
    with pytest.raises(OptionError, match="two tasks are named same"):
        evaluate(tiny_model_folder, EvaluateOptions(tasks=(path, path)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, "line 2: fields question; a task row has one of"),
        ({**CHOICES[0], "gold": 2}, "line 2: the gold answer must be a number from 0 to 1, not 2"),
        ({**CHOICES[0], "gold": True}, "line 2: the gold answer"),
        ({**CHOICES[0], "choices": ["one"]}, "line 2: `choices` must be a list of at least two"),
        ({**CHOICES[0], "choices": ["one", ""]}, "line 2: `choices` must be a string with text"),
        ({**CHOICES[0], "query": 3}, "line 2: `query` must be a string"),
        (BEGINNINGS[0], "line 2: fields"),
    ],
)
def test_bad_task_row_raises_with_its_line(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(write_rows(tmp_path / "rows.jsonl", [CHOICES[0], row]))


def test_hellaswag_rows_become_lm_evals_prompt(tmp_path: Path) -> None:
    from lm_eval.tasks.hellaswag.utils import process_docs

    task = read_rows(write_rows(tmp_path / "hellaswag.jsonl", HELLASWAG))
    theirs = process_docs(datasets.Dataset.from_list(HELLASWAG))[0]
    assert task.rows[0] == {key: theirs[key] for key in ("query", "choices", "gold")}


def test_unknown_task_raises_with_what_there_is(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # without lm-eval's own tasks: reading their 10,000 files takes 20 s
    local = partial(harness.TaskManager, include_defaults=False)
    monkeypatch.setattr(harness, "TaskManager", lambda include_path, include_defaults=True: local(None, include_path))
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    (tmp_path / "mine.yaml").write_text(TASK_YAML.format(file="rows.jsonl"))
    with pytest.raises(OptionError, match=r"unknown task no_such_task.*it defines: mine"):
        evaluate(tiny_model_folder, EvaluateOptions(tasks=("no_such_task",), include_path=tmp_path))
