from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lpc.evaluation.task_data import LOCAL_SETS, write_tasks
from lpc.options import AskedTask
from passes.errors import DataError, LpcError, MissingFileError, OptionError

CHOICE = {"query": "Question: Which?", "choices": ["a", "b", "c", "d"], "gold": 2}
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "arc_easy": (
        CHOICE,
        {"question": "Which?", "choices": {"text": ["a", "b", "c", "d"], "label": [*"ABCD"]}, "answerKey": "C"},
    ),
    "openbookqa": (
        {**CHOICE, "query": "Birds eat"},
        {"question_stem": "Birds eat", "choices": {"text": ["a", "b", "c", "d"], "label": [*"ABCD"]}, "answerKey": "C"},
    ),
    "piqa": (
        {"query": "Question: How?\n", "choices": ["so", "thus"], "gold": 1},
        {"goal": "How?", "sol1": "so", "sol2": "thus", "label": 1},
    ),
    "boolq": (
        {"query": "Passage: It rains.\nQuestion: is it wet?\n".strip(), "choices": ["no", "yes"], "gold": 1},
        {"passage": "It rains.", "question": "is it wet", "label": 1},
    ),
    "winogrande": (
        {"context_options": ["The cat saw a cat", "The cat saw a dog"], "continuation": "ran.", "gold": 1},
        {"sentence": "The cat saw a _ ran.", "option1": "cat", "option2": "dog", "answer": "2"},
    ),
    "lambada_openai": ({"context": "She said", "continuation": "yes"}, {"text": "She said yes"}),
}  # fmt: skip
OUTSIDE: dict[str, dict[str, Any]] = {
    "hellaswag": {
        "ctx_a": "A man stands. [title] He",
        "ctx_b": "runs",
        "activity_label": "Running",
        "endings": ["away.", "home."],
        "label": "1",
    },
    "wikitext": {"page": "= A =\n\nThe cat sat ."},
}


def written(folder: Path, name: str, row: dict[str, Any]) -> AskedTask:
    (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return AskedTask(name=name, limit=None)


def built(name: str, row: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    """The task on local data, and its one document."""
    from contextlib import ExitStack

    from lpc.evaluation import harness

    folder.mkdir()
    out = folder / "tasks"
    assert write_tasks((written(folder, name, row),), folder, out) == {}
    with ExitStack() as stack:
        task = harness.named_tasks([name], out, stack)[0]
        return task, next(iter(task.eval_docs))


def prompt(task: Any, doc: Any) -> tuple[Any, ...]:
    """All that the model is asked: context, answers, and which of them is right."""
    choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
    return task.doc_to_text(doc), choices, task.doc_to_target(doc), task.config.target_delimiter


@pytest.mark.parametrize("name", ROWS)
def test_collections_rows_become_the_prompt_that_lm_eval_makes_of_the_data_sets_own(name: str, tmp_path: Path) -> None:
    collected, own = (built(name, row, tmp_path / kind) for kind, row in zip("ab", ROWS[name], strict=True))
    assert prompt(*collected) == prompt(*own)
    metrics = [each["metric"] for each in collected[0].config.metric_list]
    assert metrics in (["acc"], ["acc", "acc_norm"], ["perplexity", "acc"])


def test_prompts_are_lm_evals(tmp_path: Path) -> None:
    found = {name: prompt(*built(name, ROWS[name][0], tmp_path / name)) for name in ROWS}
    assert found["arc_easy"] == ("Question: Which?\nAnswer:", ["a", "b", "c", "d"], 2, " ")
    assert found["openbookqa"][0] == "Birds eat"
    assert found["piqa"] == ("Question: How?\nAnswer:", ["so", "thus"], 1, " ")
    assert found["boolq"] == ("It rains.\nQuestion: is it wet?\nAnswer:", ["no", "yes"], 1, " ")
    options = ["The cat saw a cat", "The cat saw a dog"]
    assert found["winogrande"] == (1, options, "ran.", " ")
    assert found["lambada_openai"][:3] == ("She said", None, " yes")


@pytest.mark.parametrize("name", OUTSIDE)
def test_rows_of_the_data_set_itself_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    task, doc = built(name, OUTSIDE[name], tmp_path / name)
    assert task.config.task == name
    assert OUTSIDE[name].items() <= doc.items()


def test_every_definition_is_one_of_lm_evals() -> None:
    import lm_eval.tasks

    home = Path(lm_eval.tasks.__file__).parent
    for name, each in LOCAL_SETS.items():
        text = (home / each.definition).read_text()
        assert f"task: {name}\n" in text


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("piqa", {"goal": "x"}, "piqa.jsonl, line 1: fields goal, not goal, sol1, sol2, label or query"),
        ("arc_easy", {**CHOICE, "gold": 4}, "line 1: `gold` must be a number from 0 to 3, got 4"),
        ("boolq", {**CHOICE, "choices": ["no", "yes"], "gold": 0}, "no line that begins with 'Question: '"),
        ("lambada_openai", {"context": "a", "continuation": "b c"}, "`continuation` must be one word"),
    ],
)
def test_row_of_no_use_raises_with_its_line(name: str, row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write_tasks((written(tmp_path, name, row),), tmp_path, tmp_path / "tasks")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("piqa", MissingFileError, "there is no piqa.jsonl in"), ("mmlu", OptionError, "mmlu has no local form")],
)
def test_named_task_without_data_raises(name: str, error: type[LpcError], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        write_tasks((AskedTask(name=name, limit=None),), tmp_path, tmp_path / "tasks")


def test_task_of_a_preset_without_data_is_left_out_with_the_reason(tmp_path: Path) -> None:
    found = write_tasks((AskedTask(name="piqa", limit=None, preset="paper"),), tmp_path, tmp_path / "tasks")
    assert list(found) == ["piqa"]
    assert "there is no piqa.jsonl in" in found["piqa"]
