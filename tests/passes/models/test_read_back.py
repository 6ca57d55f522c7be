"""What ``lpc apply`` and ``lpc plan`` read: whole, finite, and not blank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import build_model
from safetensors.torch import save_file

from passes.criteria import SavedScores
from passes.errors import MissingFileError, PlanError
from passes.pipeline import Compensation
from passes.trace import trace


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "is empty"),
        ({"a": torch.full((2, 2), float("nan"))}, "not finite"),
        ({"a": torch.full((2, 2), float("inf"))}, "not finite"),
        ({"a": torch.ones(2, dtype=torch.int64)}, "not finite"),
        ({"a": torch.zeros(2, 2)}, "nothing but zeros in a"),
    ],
)
def test_compensated_weights_that_cannot_be_are_refused(
    tensors: dict[str, torch.Tensor], said: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "w")
    with pytest.raises(PlanError, match=said):
        Compensation.load(tmp_path / "w")


def test_compensated_weights_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 2), "b": torch.zeros(2)}
    save_file(tensors, tmp_path / "w")
    found = Compensation.load(tmp_path / "w").weights
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    (tmp_path / "w").write_bytes(b"short")
    with pytest.raises(PlanError, match="holds no weights"):
        Compensation.load(tmp_path / "w")
    with pytest.raises(MissingFileError):
        Compensation.load(tmp_path)


def test_scores_that_rank_nothing_are_refused() -> None:
    graph = trace(build_model("llama").config)
    scores = {dimension.name: torch.rand(dimension.size) for dimension in graph.dimensions}
    SavedScores("", "x", scores).check(graph)
    with pytest.raises(PlanError, match="all zero"):
        SavedScores("", "x", {name: torch.zeros_like(score) for name, score in scores.items()}).check(graph)
    with pytest.raises(PlanError, match="disagree on the dimension"):
        SavedScores("", "x", dict(list(scores.items())[1:])).check(graph)
    with pytest.raises(PlanError, match="not finite"):
        SavedScores("", "x", {**scores, next(iter(scores)): torch.full((4,), float("nan"))}).check(graph)
