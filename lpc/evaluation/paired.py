"""A model against another one on the same documents: the difference, its standard error, and how likely chance is.

Right or wrong answers: McNemar's exact test (Biometrika 12, 1947) on the documents that only one of the two gets right,
and the standard error of the mean of the paired differences. Else (perplexities): a paired bootstrap (Efron &
Tibshirani, 1993, ch. 13) of the metric itself, which resamples documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Difference", "PairedResult", "compared", "value_of"]

Matrix = npt.NDArray[np.float64]

RESAMPLES = 2000
SEED = 0
CHUNK = 100
SLACK = 1e-6
"""Relative: so far may a metric that is made of documents again lie from lm-eval's own number."""

BITS = 1 / math.log(2)


@dataclass(frozen=True, kw_only=True)
class PairedResult:
    """``difference`` is the model's value less the reference's; ``stderr`` of it; ``p_value`` two-sided."""

    difference: float
    stderr: float
    p_value: float
    test: str
    documents: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a model's value of a metric differs from that of the ``reference``, on the same documents.

    ``points``: the values are shares, and are told in points of a hundred. ``test`` is ``mcnemar`` or ``bootstrap``.
    """

    task: str
    metric: str
    fewshot: int
    limit: int | None
    model: str
    backend: str
    reference: str
    reference_backend: str
    documents: int
    reference_value: float
    value: float
    difference: float
    stderr: float
    p_value: float
    test: str
    higher_is_better: bool
    points: bool


def value_of(metric: str, items: Sequence[float | Sequence[float]]) -> float:
    """The metric of documents, as lm-eval aggregates it: a mean, or for (value, weight) pairs a weighted one.

    ``items`` are one a document. Perplexities and bits are lm-eval's functions of that mean.
    """
    sums = _matrix(items).sum(axis=0)
    return float(_transformed(metric, sums[None])[0])


def compared(
    metric: str, reference: Sequence[float | Sequence[float]], model: Sequence[float | Sequence[float]]
) -> PairedResult | None:
    """The model's documents against the reference's, in the same order; None for fewer than two documents."""
    first, second = _matrix(reference), _matrix(model)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} documents cannot be paired")
    if len(first) < 2:
        return None
    values = np.concatenate([first[:, 0], second[:, 0]])
    is_answer = not _is_transformed(metric) and bool(np.isin(values, (0.0, 1.0)).all() and (first[:, 1] == 1).all())
    return _mcnemar(first[:, 0], second[:, 0]) if is_answer else _bootstrap(metric, first, second)


def _matrix(items: Sequence[float | Sequence[float]]) -> Matrix:
    """[documents, 2]: value and weight."""
    pairs = [tuple(item) if isinstance(item, Sequence) else (item, 1.0) for item in items]
    return np.asarray(pairs, dtype=np.float64).reshape(-1, 2)


def _is_transformed(metric: str) -> bool:
    return metric.endswith("perplexity") or metric == "bits_per_byte"


def _transformed(metric: str, sums: Matrix) -> Matrix:
    means = sums[:, 0] / sums[:, 1]
    with np.errstate(over="ignore"):
        if metric.endswith("perplexity"):
            return np.exp(-means)
    return -means * BITS if metric == "bits_per_byte" else means


def _mcnemar(reference: Matrix, model: Matrix) -> PairedResult:
    gaps = model - reference
    lost, won = int((gaps < 0).sum()), int((gaps > 0).sum())
    n, least = lost + won, min(lost, won)
    tail = sum(math.comb(n, k) for k in range(least + 1))
    p = min(1.0, 2 * tail / 2**n)
    stderr = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return PairedResult(difference=float(gaps.mean()), stderr=stderr, p_value=p, test="mcnemar", documents=len(gaps))


def _bootstrap(metric: str, reference: Matrix, model: Matrix) -> PairedResult:
    count, rng = len(reference), np.random.default_rng(SEED)
    both, draws = np.concatenate([reference, model], axis=1), []
    for _ in range(0, RESAMPLES, CHUNK):
        times = rng.multinomial(count, np.full(count, 1 / count), size=CHUNK).astype(np.float64)
        sums = times @ both
        draws.append(_transformed(metric, sums[:, 2:]) - _transformed(metric, sums[:, :2]))
    found = np.concatenate(draws)
    whole = both.sum(axis=0)[None]
    difference = float((_transformed(metric, whole[:, 2:]) - _transformed(metric, whole[:, :2]))[0])
    tail = min(int((found <= 0).sum()), int((found >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (RESAMPLES + 1))
    return PairedResult(
        difference=difference, stderr=float(found.std(ddof=1)), p_value=p, test="bootstrap", documents=count
    )
