"""lm-eval's own tasks on local data: prompt, target and metrics are lm-eval's, only the rows come from a folder.

A set is ``NAME.jsonl`` in the folder, with the fields of the data set that lm-eval downloads, or with those of the
usual collections (``query, choices, gold``; ``context_options, continuation, gold``; ``context, continuation``), which
are turned back into the data set's own, so that lm-eval's template makes the same prompt of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from exporters.files import write_text
from lpc.data import read_jsonl
from lpc.options import AskedTask
from passes.errors import DataError, MissingFileError, OptionError

__all__ = ["LOCAL_SETS", "LocalSet", "left_out", "write_tasks"]

Row = Mapping[str, Any]
Turned = dict[str, Any]

LETTERS = "ABCDEFGHIJKLMNOP"


@dataclass(frozen=True, kw_only=True)
class LocalSet:
    """A task that lm-eval defines in ``definition`` (inside lm-eval's tasks), by its data set's ``fields``.

    ``files`` are the names that a local file may have; ``given`` the fields of the usual collection, and ``turn`` the
    way from these to the data set's own (None: there is no other form).
    """

    definition: str
    files: tuple[str, ...]
    fields: tuple[str, ...]
    given: tuple[str, ...] = ()
    turn: Callable[[Row], Turned] | None = None

    def file(self, folder: Path) -> Path | None:
        """The data in a folder, if they are there."""
        return next((path for name in self.files if (path := folder / f"{name}.jsonl").is_file()), None)

    def rows(self, path: Path) -> list[Turned]:
        """The rows in the data set's own form. Raises DataError, naming the line."""
        found = []
        for number, row in read_jsonl(path):
            own = set(self.fields) <= row.keys()
            if not own and (self.turn is None or not set(self.given) <= row.keys()):
                wanted = " or ".join(", ".join(each) for each in (self.fields, self.given) if each)
                raise DataError(f"{path}, line {number}: fields {', '.join(row) or 'none'}, not {wanted}")
            try:
                found.append(dict(row) if own or self.turn is None else self.turn(row))
            except (TypeError, ValueError, AttributeError) as error:
                raise DataError(f"{path}, line {number}: {error}") from error
        if not found:
            raise DataError(f"{path} holds no rows")
        return found


def write_tasks(asked: tuple[AskedTask, ...], data: Path, out: Path) -> dict[str, str]:
    """Write definition and rows of each task that has a local set into ``out``, a folder for lm-eval's include path.

    Returns why tasks that a preset names are left out, by task. Raises MissingFileError for a task that was named
    itself and has no data in the folder, OptionError for one that is not known here, DataError for rows of no use.
    """
    missing: dict[str, str] = {}
    for task in asked:
        found = LOCAL_SETS.get(task.name)
        path = found.file(data) if found else None
        if found is not None and path is not None:
            _write(task.name, found, path, out)
        elif task.preset is not None:
            missing[task.name] = left_out(task.name, data)
        elif found is None:
            raise OptionError(
                f"task {task.name} has no local form: with --task-data (task_data) there are {', '.join(LOCAL_SETS)}"
            )
        else:
            raise MissingFileError(left_out(task.name, data))
    return missing


def left_out(name: str, data: Path) -> str:
    """Why a task is not run."""
    return f"there is no {' or '.join(f'{each}.jsonl' for each in LOCAL_SETS[name].files)} in {data}"


def _write(name: str, found: LocalSet, path: Path, out: Path) -> None:
    import lm_eval.tasks

    rows, file = found.rows(path), (out / f"{name}.jsonl").absolute()
    out.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    definition = {
        "include": str(Path(lm_eval.tasks.__file__).parent / found.definition),
        "task": name,
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
    }
    write_text(out / f"{name}.yaml", yaml.safe_dump(definition, sort_keys=False))


def _after(text: Any, start: str, end: str = "") -> str:
    """A text without what a collection put around it."""
    return str(text).removeprefix(start).removesuffix(end)


def _lettered(question: str, row: Row) -> Turned:
    choices, letters = [str(each) for each in row["choices"]], LETTERS[: len(row["choices"])]
    key = letters[_gold(row["gold"], len(choices))]
    return {question: _after(row["query"], "Question: "), "choices": {"text": choices, "label": [*letters]}} | {
        "answerKey": key
    }


def _boolq(row: Row) -> Turned:
    passage, mark, question = str(row["query"]).rpartition("\nQuestion: ")
    if not mark:
        raise ValueError("`query` has no line that begins with 'Question: '")
    if list(row["choices"]) != ["no", "yes"]:
        raise ValueError(f"`choices` must be no and yes, got {row['choices']!r:.80}")
    return {
        "passage": _after(passage, "Passage: "),
        "question": _after(question, "", "?"),
        "label": _gold(row["gold"], 2),
    }


def _piqa(row: Row) -> Turned:
    first, second = row["choices"]
    return {
        "goal": _after(row["query"], "Question: ", "\n"),
        "sol1": first,
        "sol2": second,
        "label": _gold(row["gold"], 2),
    }


def _winogrande(row: Row) -> Turned:
    """The blank stands in front: what precedes it in the sentence precedes both options then."""
    first, second = row["context_options"]
    sentence = f"_ {row['continuation']}"
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(_gold(row["gold"], 2) + 1)}


def _lambada(row: Row) -> Turned:
    if " " in str(row["continuation"]).strip():
        raise ValueError(f"`continuation` must be one word, got {row['continuation']!r:.80}")
    return {"text": f"{row['context']} {str(row['continuation']).strip()}"}


def _gold(value: Any, count: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise ValueError(f"`gold` must be a number from 0 to {count - 1}, got {value!r:.80}")
    return value


CHOICES = ("query", "choices", "gold")
LOCAL_SETS: Mapping[str, LocalSet] = {
    "wikitext": LocalSet(definition="wikitext/wikitext.yaml", files=("wikitext",), fields=("page",)),
    "boolq": LocalSet(
        definition="super_glue/boolq/default.yaml",
        files=("boolq",),
        fields=("passage", "question", "label"),
        given=CHOICES,
        turn=_boolq,
    ),
    "piqa": LocalSet(
        definition="piqa/piqa.yaml",
        files=("piqa",),
        fields=("goal", "sol1", "sol2", "label"),
        given=CHOICES,
        turn=_piqa,
    ),
    "hellaswag": LocalSet(
        definition="hellaswag/hellaswag.yaml",
        files=("hellaswag",),
        fields=("ctx_a", "ctx_b", "activity_label", "endings", "label"),
    ),
    "winogrande": LocalSet(
        definition="winogrande/default.yaml",
        files=("winogrande",),
        fields=("sentence", "option1", "option2", "answer"),
        given=("context_options", "continuation", "gold"),
        turn=_winogrande,
    ),
    "arc_easy": LocalSet(
        definition="arc/arc_easy.yaml",
        files=("arc_easy",),
        fields=("question", "choices", "answerKey"),
        given=CHOICES,
        turn=lambda row: _lettered("question", row),
    ),
    "arc_challenge": LocalSet(
        definition="arc/arc_challenge.yaml",
        files=("arc_challenge",),
        fields=("question", "choices", "answerKey"),
        given=CHOICES,
        turn=lambda row: _lettered("question", row),
    ),
    "openbookqa": LocalSet(
        definition="openbookqa/openbookqa.yaml",
        files=("openbookqa", "openbook_qa"),
        fields=("question_stem", "choices", "answerKey"),
        given=CHOICES,
        turn=lambda row: _lettered("question_stem", row),
    ),
    "lambada_openai": LocalSet(
        definition="lambada/lambada_openai.yaml",
        files=("lambada_openai",),
        fields=("text",),
        given=("context", "continuation"),
        turn=_lambada,
    ),
}
