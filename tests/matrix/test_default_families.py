"""The defaults work on families that are unlike one another; ``tests/matrix/families.py`` tries them all."""

from __future__ import annotations

import pytest
from default_way import by_default


@pytest.mark.filterwarnings("ignore")  # random models are told that they are not trained
@pytest.mark.parametrize(
    ("name", "dtype", "criterion"),
    [
        pytest.param("falcon-mqa", "bf16", "obs", marks=pytest.mark.matrix),  # parallel attention
        pytest.param("gpt2", "fp32", "obs", marks=pytest.mark.matrix),  # Conv1D
        pytest.param("bert-question-answering", "bf16", "obs", marks=pytest.mark.matrix),
        pytest.param("mixtral", "fp32", "loraprune", marks=pytest.mark.matrix),  # experts, which obs does not rank
    ],
)
def test_the_defaults_work(name: str, dtype: str, criterion: str) -> None:
    way = by_default(name, dtype)
    assert way.criterion == criterion
    assert way.shrink < 1e-5
    assert way.export < 1e-4
    assert (criterion == "obs") == ("compensate" in way.passes)
