from __future__ import annotations

import pytest
import torch

from lpc.evaluation.similarity import nearest_kept, rank_correlation, similarity_quality
from passes.errors import DataError, ModelError


def spearman(one: list[float], other: list[float]) -> float:
    """By the definition, in plain Python: Pearson's correlation of mean ranks."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    a, b = ranks(one), ranks(other)
    mean = (len(a) + 1) / 2
    top = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return top / (sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)) ** 0.5


@pytest.mark.parametrize("other", [[1.0, 2, 3, 4], [4.0, 3, 2, 1], [1.0, 1, 2, 2], [2.0, 9, 9, 1]], ids=str)
def test_rank_correlation_is_spearmans_with_shared_ranks(other: list[float]) -> None:
    one = [0.1, 0.2, 5.0, 7.0]
    assert rank_correlation(torch.tensor(one), torch.tensor(other)) == pytest.approx(spearman(one, other))


def test_nearest_kept_counts_the_shared_nearest_of_each_row() -> None:
    theirs = torch.tensor([[9.0, 5, 1], [5, 9, 2], [1, 2, 9]])
    mine = torch.tensor([[9.0, 1, 5], [5, 9, 2], [5, 2, 9]])
    assert nearest_kept(theirs, theirs) == 1
    assert nearest_kept(mine, theirs) == pytest.approx(1 / 3)


def test_vectors_turned_and_stretched_keep_all_and_random_ones_little() -> None:
    vectors = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    same = similarity_quality(3 * vectors @ turn, vectors)
    assert same.similarity == pytest.approx(1)
    assert same.neighbours == 1
    other = similarity_quality(torch.randn(60, 8, generator=torch.Generator().manual_seed(2)), vectors)
    assert other.similarity is not None
    assert abs(other.similarity) < 0.1
    assert set(same.measures) == {"loss", "similarity", "neighbours"}


def test_too_few_vectors_and_such_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="2 held-out texts"):
        similarity_quality(torch.ones(2, 4), torch.ones(2, 4))
    with pytest.raises(ModelError, match="NaN"):
        similarity_quality(torch.full((3, 4), torch.nan), torch.ones(3, 4))
