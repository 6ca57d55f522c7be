"""Models and backends against each other: how they differ from the dense model, and whether backends agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from lpc.evaluation.gathered import Scored
from lpc.evaluation.paired import SLACK, Difference, compared, value_of
from lpc.evaluation.results import Agreement
from lpc.evaluation.subjects import Subject, tolerance_of, weight_dtype
from passes.errors import DataError, PostconditionError
from passes.models import rounding_tolerance

__all__ = ["Answers", "agreements", "check_agreement", "differences"]

TOLERANCE = 1e-3
"""Relative difference in log-likelihood that two backends of one fp32 model may show."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Of one subject: log-likelihoods by task, of every request in the order of documents and choices; and scores."""

    subject: Subject
    likelihoods: Mapping[str, Sequence[float]]
    scored: tuple[Scored, ...]


def differences(answers: Sequence[Answers]) -> Iterator[Difference]:
    """Each model and backend against the dense one, metric by metric, on the documents that both answered."""
    dense = next((each for each in answers if each.subject.model == "dense"), None)
    for other in answers if dense is not None else ():
        if other is dense or dense is None:
            continue
        known = {_key(each): each for each in dense.scored}
        for each in other.scored:
            found = known.get(_key(each))
            if found is not None and (difference := _difference(dense, found, other, each)) is not None:
                yield difference


def _key(scored: Scored) -> tuple[str, str, int, int | None]:
    result = scored.result
    return result.task, result.metric, result.fewshot, result.limit


def _difference(dense: Answers, reference: Scored, other: Answers, model: Scored) -> Difference | None:
    """None where a metric is no mean of its documents, or they are too few to say how much chance there is."""
    result, metric = model.result, model.result.metric.partition(" (")[0]
    if reference.documents != model.documents:
        raise DataError(f"task {result.task} has other documents for {other.subject.model}: it is not deterministic")
    for each in (reference, model):
        again = value_of(metric, each.items)
        if abs(again - each.result.value) > SLACK * max(abs(each.result.value), 1.0):
            return None
    paired = compared(metric, reference.items, model.items)
    if paired is None:
        return None
    shares = all(isinstance(item, int | float) and 0 <= item <= 1 for item in (*reference.items, *model.items))
    return Difference(
        task=result.task,
        metric=result.metric,
        fewshot=result.fewshot,
        limit=result.limit,
        model=other.subject.model,
        backend=other.subject.backend,
        reference=dense.subject.model,
        reference_backend=dense.subject.backend,
        documents=paired.documents,
        reference_value=reference.result.value,
        value=result.value,
        difference=paired.difference,
        stderr=paired.stderr,
        p_value=paired.p_value,
        test=paired.test,
        higher_is_better=model.higher_is_better,
        points=shares,
    )


def agreements(answers: Sequence[Answers]) -> Iterator[Agreement]:
    """Each further backend of a model against its first one."""
    reference: dict[str, Answers] = {}
    for each in answers:
        first = reference.setdefault(each.subject.model, each)
        for task, expected in first.likelihoods.items() if first is not each else ():
            actual = each.likelihoods[task]
            if len(actual) != len(expected):
                raise DataError(f"task {task} has other requests for {each.subject.backend}: it is not deterministic")
            dtype = getattr(torch, weight_dtype(each.subject), torch.float32)
            gaps = [abs(a - b) for a, b in zip(actual, expected, strict=True)]
            yield Agreement(
                model=each.subject.model,
                backend=each.subject.backend,
                reference=first.subject.backend,
                task=task,
                requests=len(expected),
                total=abs(sum(actual) - sum(expected)) / max(abs(sum(expected)), 1.0),
                worst=max(gap / max(abs(value), 1.0) for gap, value in zip(gaps, expected, strict=True)),
                tolerance=max(TOLERANCE, rounding_tolerance(dtype), tolerance_of(each.subject)),
            )


def check_agreement(found: Sequence[Agreement]) -> None:
    """Raise PostconditionError, with the numbers, where two backends of one model disagree."""
    broken = [str(agreement) for agreement in found if not agreement.holds]
    if broken:
        raise PostconditionError("backends of one model disagree: " + "; ".join(broken))
