"""Local jsonl files as tasks: which shape the rows have, and whether every row is sound.

Four shapes: ``query, choices, gold``; ``context_options, continuation, gold`` (one ending, several beginnings);
``context, continuation``; HellaSwag's own (``ctx_a, ctx_b, activity_label, endings, label``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpc.data import read_jsonl
from passes.errors import DataError

__all__ = ["RowTask", "read_rows"]

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RowTask:
    """Rows for lm-eval, and the fields of its task configuration that say how to read them."""

    name: str
    output_type: str
    doc_to_text: str
    doc_to_target: str
    doc_to_choice: str | None
    metrics: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Shape:
    fields: tuple[str, ...]
    output_type: str
    text: str
    target: str
    choice: str | None
    metrics: tuple[str, ...]
    convert: Callable[[Row], dict[str, Any]]


def read_rows(path: Path) -> RowTask:
    """Read a ``.jsonl`` file of one of the four shapes; the task is named by the file's stem.

    Raises `MissingFileError`, and `DataError` naming the line for rows of no known or of mixed shape, empty or too few
    choices, or a gold answer that is none of them.
    """
    shape: _Shape | None = None
    rows: list[dict[str, Any]] = []
    for number, row in read_jsonl(path):
        shape = shape or _shape(row)
        if shape is None or not set(shape.fields) <= row.keys():
            known = "; ".join(", ".join(each.fields) for each in _SHAPES)
            raise DataError(f"{path}, line {number}: fields {', '.join(row) or 'none'}; a task row has one of: {known}")
        try:
            rows.append(shape.convert(row))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    if shape is None:
        raise DataError(f"{path} holds no rows")
    return RowTask(
        name=path.stem,
        output_type=shape.output_type,
        doc_to_text=shape.text,
        doc_to_target=shape.target,
        doc_to_choice=shape.choice,
        metrics=shape.metrics,
        rows=tuple(rows),
    )


def _shape(row: Row) -> _Shape | None:
    return next((shape for shape in _SHAPES if set(shape.fields) <= row.keys()), None)


def _choose_ending(row: Row) -> dict[str, Any]:
    choices = _choices(row["choices"], "choices")
    return {"query": _text(row["query"], "query"), "choices": choices, "gold": _gold(row["gold"], len(choices))}


def _choose_beginning(row: Row) -> dict[str, Any]:
    contexts = _choices(row["context_options"], "context_options")
    ending = _text(row["continuation"], "continuation")
    return {"contexts": contexts, "ending": ending, "gold": _gold(row["gold"], len(contexts))}


def _continue(row: Row) -> dict[str, Any]:
    context, ending = _text(row["context"], "context"), _text(row["continuation"], "continuation")
    # lm-eval puts no delimiter between the two in tasks of type loglikelihood
    spaced = context[-1].isspace() or ending[0].isspace()
    return {"context": context, "ending": ending if spaced else f" {ending}"}


def _hellaswag(row: Row) -> dict[str, Any]:
    """The prompt of lm-eval's own ``hellaswag`` task (lm_eval/tasks/hellaswag/utils.py)."""
    label, first, second = (_string(row[name], name) for name in ("activity_label", "ctx_a", "ctx_b"))
    context = f"{label}: {first} {second.capitalize()}"
    endings = [_tidy(ending) for ending in _choices(row["endings"], "endings")]
    gold = int(row["label"]) if isinstance(row["label"], str) else row["label"]
    return {"query": _tidy(context), "choices": _choices(endings, "endings"), "gold": _gold(gold, len(endings))}


def _tidy(text: str) -> str:
    """Drop the markers that WikiHow pages left in the text."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _text(value: object, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{field}` must be a string with text in it, not {value!r}"[:200])
    return _string(value, field)


def _string(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{field}` must be a string, not a {type(value).__name__}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"`{field}` has half of a surrogate pair, which is no text: write the whole character")
    return value


def _choices(value: object, field: str) -> list[str]:
    if not isinstance(value, list) or len(value) < 2:
        raise ValueError(f"`{field}` must be a list of at least two strings, not {value!r}"[:200])
    return [_text(item, field) for item in value]


def _gold(value: object, count: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise ValueError(f"the gold answer must be a number from 0 to {count - 1}, not {value!r}"[:200])
    return value


_CHOICE = "multiple_choice"
_SHAPES = (
    _Shape(("query", "choices", "gold"), _CHOICE, "query", "gold", "choices", ("acc", "acc_norm"), _choose_ending),
    _Shape(
        ("context_options", "continuation", "gold"), _CHOICE, "gold", "ending", "contexts", ("acc",), _choose_beginning
    ),
    _Shape(("context", "continuation"), "loglikelihood", "context", "ending", None, ("perplexity", "acc"), _continue),
    _Shape(
        ("ctx_a", "ctx_b", "activity_label", "endings", "label"),
        _CHOICE,
        "query",
        "gold",
        "choices",
        ("acc", "acc_norm"),
        _hellaswag,
    ),
)
