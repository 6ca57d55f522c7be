"""The table that a person reads: metrics down, models and backends across."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["evaluation_rows"]

TEXT_METRICS = ("token_perplexity", "word_perplexity", "byte_perplexity")


def evaluation_rows(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows from the values of ``eval.json``."""
    runs = evaluation["runs"]
    columns = [_column(run) for run in runs]
    labels = dict.fromkeys(label for column in columns for label in column)
    header = ["", *(f"{run['model']} {run['backend']}" for run in runs)]
    return header, [[label, *(column.get(label, "–") for column in columns)] for label in labels]


def _column(run: Mapping[str, Any]) -> dict[str, str]:
    cells: dict[str, str] = {}
    if run["text"] is not None:
        context = run["text"]["context_length"]
        for metric in TEXT_METRICS:
            cells[f"{metric.replace('_', ' ')} (context {context})"] = _number(run["text"][metric])
    for result in run["scores"]:
        stderr = "" if result["stderr"] is None else f" ± {result['stderr']:.4f}"
        cells[f"{result['task']} {result['metric']}"] = f"{_number(result['value'])}{stderr}"
    return cells


def _number(value: float | None) -> str:
    if value is None:
        return "inf"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
