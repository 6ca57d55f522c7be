from __future__ import annotations

import itertools
import math
import random

import pytest

from lpc.evaluation import verdict
from lpc.evaluation.paired import compared, value_of


def test_mcnemar_p_equals_that_of_all_signs_counted() -> None:
    reference, model = [1, 1, 1, 1, 1, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1, 0, 1, 0, 0]
    found = compared("acc", reference, model)
    assert found is not None
    gaps = [b - a for a, b in zip(reference, model, strict=True) if a != b]
    signs = [abs(sum(signs)) >= abs(sum(gaps)) for signs in itertools.product((-1, 1), repeat=len(gaps))]
    assert found.test == "mcnemar"
    assert found.p_value == pytest.approx(sum(signs) / len(signs))
    mean = sum(b - a for a, b in zip(reference, model, strict=True)) / 10
    spread = math.sqrt(sum((b - a - mean) ** 2 for a, b in zip(reference, model, strict=True)) / 9 / 10)
    assert [found.difference, found.stderr] == pytest.approx([mean, spread])


def test_models_that_answer_alike_do_not_differ() -> None:
    found = compared("acc", [1, 0, 1], [1, 0, 1])
    assert found is not None
    assert (found.difference, found.stderr, found.p_value) == (0.0, 0.0, 1.0)


def test_bootstrap_of_a_mean_has_the_error_that_theory_gives() -> None:
    rng = random.Random(0)
    reference = [rng.gauss(0, 1) for _ in range(400)]
    model = [value + rng.gauss(0.02, 0.5) for value in reference]
    gaps = [b - a for a, b in zip(reference, model, strict=True)]
    mean = sum(gaps) / 400
    theory = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 399 / 400)
    found = compared("score", reference, model)
    assert found is not None
    assert found.test == "bootstrap"
    assert found.difference == pytest.approx(mean)
    assert found.stderr == pytest.approx(theory, rel=0.1)
    assert found.p_value == pytest.approx(math.erfc(abs(mean / theory) / math.sqrt(2)), abs=0.05)


def test_perplexity_is_lm_evals_of_weighted_documents() -> None:
    from lm_eval.api.metrics import weighted_perplexity

    items = [(-20.0, 5.0), (-3.0, 2.0), (-40.0, 11.0)]
    assert value_of("word_perplexity", items) == pytest.approx(weighted_perplexity(items))
    worse = [(value - 5, weight) for value, weight in items]
    found = compared("word_perplexity", items, worse)
    assert found is not None
    assert found.difference == pytest.approx(weighted_perplexity(worse) - weighted_perplexity(items))
    assert found.p_value < 0.01


def test_one_document_says_nothing_of_chance() -> None:
    assert compared("acc", [1], [0]) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"difference": -0.012, "stderr": 0.008, "p_value": 0.13}, "worse by 1.2 ± 0.8 points, p = 0.13"),
        ({"difference": 0.2, "stderr": 0.01, "p_value": 1e-9}, "better by 20.0 ± 1.0 points, p < 0.001"),
        ({"difference": 0.0, "stderr": 0.0, "p_value": 1.0}, "the same, p = 1"),
        (
            {"difference": 2.5, "stderr": 0.31, "p_value": 0.001, "points": False, "higher_is_better": False},
            "worse by 2.5 ± 0.31, p = 0.001",
        ),
    ],
)
def test_difference_is_told_in_words(values: dict[str, object], said: str) -> None:
    assert verdict({"points": True, "higher_is_better": True, **values}) == said
