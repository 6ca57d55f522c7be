"""What lm-eval's files say, as results: of a text, of tasks, request by request, document by document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lpc.evaluation.kept import Found
from lpc.evaluation.perplexity import exp
from lpc.evaluation.results import TaskResult, TextResult
from passes.errors import DataError

__all__ = ["TEXT_TASK", "Scored", "log_likelihoods", "scored", "task_results", "text_result"]

TEXT_TASK = "text"
"""Name of the task that measures the text file."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One metric of one task, a value (or value and weight) a document; ``documents`` are their hashes."""

    result: TaskResult
    higher_is_better: bool
    documents: tuple[str, ...]
    items: tuple[Any, ...]


def text_result(found: Found, *, path: str, sha256: str, limit: int | None, context_length: int) -> TextResult:
    """Of the one rolling task on a text."""
    samples, results = found.samples[TEXT_TASK], found.results["results"][TEXT_TASK]
    tokens = found.note.tokens
    if not tokens:
        raise DataError(f"the text {path} has no token")
    log_likelihood = sum(sample["word_perplexity"][0] for sample in samples)
    return TextResult(
        path=path,
        sha256=sha256,
        limit=limit,
        documents=len(samples),
        tokens=tokens,
        words=sum(sample["word_perplexity"][1] for sample in samples),
        bytes=sum(sample["byte_perplexity"][1] for sample in samples),
        log_likelihood=log_likelihood,
        context_length=context_length,
        token_perplexity=exp(-log_likelihood / tokens),
        word_perplexity=results["word_perplexity,none"],
        byte_perplexity=results["byte_perplexity,none"],
        bits_per_byte=results["bits_per_byte,none"],
    )


def task_results(found: Found, limit: int | None) -> Iterator[TaskResult]:
    """Every metric of every task; lm-eval's keys are ``metric,filter`` and ``metric_stderr,filter``."""
    for task, values in found.results["results"].items():
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{chosen}")
            yield TaskResult(
                task=task,
                metric=metric if chosen == "none" else f"{metric} ({chosen})",
                fewshot=int(found.results["n-shot"].get(task) or 0),
                limit=limit,
                value=value,
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                samples=found.results["n-samples"].get(task, {}).get("effective", values.get("sample_len", 0)),
            )


def scored(found: Found, limit: int | None) -> Iterator[Scored]:
    """Every metric that documents have a value of; a group's has none of its own."""
    better = found.results["higher_is_better"]
    for result in task_results(found, limit):
        metric, _, chosen = result.metric.partition(" (")
        samples = [
            sample
            for sample in found.samples.get(result.task, ())
            if sample["filter"] == (chosen.removesuffix(")") or "none") and metric in sample
        ]
        direction = better.get(result.task, {}).get(metric)
        if samples and direction is not None:
            ordered = sorted(samples, key=lambda sample: int(sample["doc_id"]))
            yield Scored(
                result=result,
                higher_is_better=bool(direction),
                documents=tuple(sample["doc_hash"] for sample in ordered),
                items=tuple(_item(sample[metric]) for sample in ordered),
            )


def _item(value: Any) -> Any:
    return tuple(float(each) for each in value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def log_likelihoods(found: Found) -> Mapping[str, list[float]]:
    """Of all requests that have one, a task; with several filters samples are there once each, so the first counts."""
    likelihoods: dict[str, list[float]] = {}
    for task, samples in found.samples.items():
        if not samples or found.results["configs"][task]["output_type"] == "generate_until":
            continue
        ordered = sorted(samples, key=lambda sample: int(sample["doc_id"]))
        responses = [each[0] for s in ordered if s["filter"] == samples[0]["filter"] for each in s["resps"]]
        likelihoods[task] = [float(r[0] if isinstance(r, list) else r) for r in responses]
    return likelihoods
