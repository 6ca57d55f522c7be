"""The tables that a person reads: metrics down, models and backends across; and differences from the dense model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["difference_rows", "evaluation_rows", "told", "verdict"]

TEXT_METRICS = ("token_perplexity", "word_perplexity", "byte_perplexity")


def evaluation_rows(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows from the values of ``eval.json``."""
    runs = evaluation["runs"]
    columns = [_column(run) for run in runs]
    labels = dict.fromkeys(label for column in columns for label in column)
    header = ["", *(f"{run['model']} {run['backend']}" for run in runs)]
    return header, [[label, *(column.get(label, "–") for column in columns)] for label in labels]


def difference_rows(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the paired comparisons in the values of ``eval.json``: metrics down, models across."""
    found = evaluation.get("differences", ())
    models = list(dict.fromkeys(f"{each['model']} {each['backend']}" for each in found))
    rows: dict[str, dict[str, str]] = {}
    for each in found:
        rows.setdefault(told(each), {})[f"{each['model']} {each['backend']}"] = verdict(each)
    return ["", *models], [[label, *(cells.get(model, "–") for model in models)] for label, cells in rows.items()]


def told(result: Mapping[str, Any]) -> str:
    """What a score or a difference is of: task, metric, and what of them is not as usual."""
    more = [f"{result['fewshot']}-shot"] if result["fewshot"] else []
    more += [f"first {result['limit']}"] if result["limit"] is not None else []
    return f"{result['task']} {result['metric']}" + (f" ({', '.join(more)})" if more else "")


def verdict(difference: Mapping[str, Any]) -> str:
    """A difference in words, such as ``worse by 1.2 ± 0.8 points, p = 0.13``."""
    value, stderr, p = difference["difference"], difference["stderr"], difference["p_value"]
    chance = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    if value is None or stderr is None:
        return f"beyond all numbers, {chance}"
    if value == 0:
        return f"the same, {chance}"
    how = "better" if (value > 0) == difference["higher_is_better"] else "worse"
    if difference["points"]:
        return f"{how} by {100 * abs(value):.1f} ± {100 * stderr:.1f} points, {chance}"
    return f"{how} by {abs(value):.4g} ± {stderr:.2g}, {chance}"


def _column(run: Mapping[str, Any]) -> dict[str, str]:
    cells: dict[str, str] = {}
    for text in run["texts"]:
        several = f" of {Path(text['path']).name}" if len(run["texts"]) > 1 else ""
        first = f", first {text['limit']}" if text["limit"] is not None and several else ""
        for metric in TEXT_METRICS:
            label = f"{metric.replace('_', ' ')}{several} (context {text['context_length']}{first})"
            cells[label] = _number(text[metric])
    for result in run["scores"]:
        stderr = "" if result["stderr"] is None else f" ± {result['stderr']:.4f}"
        cells[told(result)] = f"{_number(result['value'])}{stderr}"
    if "seconds" in run:
        cells["seconds, without loading"] = f"{run['seconds']:,.0f}"
    return cells


def _number(value: float | None) -> str:
    if value is None:
        return "inf"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
