"""Sums of LoRAPrune's element scores, each way against the formula written out in fp64.

The kernel runs where there is a CUDA device, or by Triton's interpreter where Triton is installed: TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from passes.algebra import Way, low_rank, low_rank_sums, windows

CUDA = torch.cuda.is_available()
KERNEL = find_spec("triton") is not None and (CUDA or os.environ.get("TRITON_INTERPRET") == "1")
WAYS = [
    Way.TORCH,
    pytest.param(
        Way.TRITON, marks=pytest.mark.skipif(not KERNEL, reason="no Triton, or neither CUDA nor TRITON_INTERPRET=1")
    ),
]
SHAPES = [(1, 100, 130, 3), (1, 64, 64, 16), (3, 70, 33, 40), (1, 5, 200, 1), (1, 130, 1, 8)]
"""Entries, rows, columns, rank: less than a tile, one, and more; ranks of one step and of two."""


@dataclass(frozen=True)
class Sample:
    weight: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    grad_left: torch.Tensor | None
    grad_right: torch.Tensor | None
    scaling: float = 0.7

    @classmethod
    def of(cls, entries: int, rows: int, columns: int, rank: int, dtype: torch.dtype = torch.float32) -> Sample:
        torch.manual_seed(entries + rows + columns + rank)
        device = "cuda" if CUDA else "cpu"
        right = torch.randn(entries, columns, rank).mT  # a view, as Conv1D's and experts' factors are
        tensors = torch.randn(entries, rows, rank), right, torch.randn(entries, rows, rank), torch.randn_like(right)
        weight = torch.randn(entries, rows, columns).to(dtype)
        found = [each if entries > 1 else each[0] for each in (weight, *tensors)]
        return cls(*(each.to(device) for each in found))

    def scores(self, *, square: bool, quadratic: bool) -> torch.Tensor:
        """[entries, rows, columns], fp64."""
        assert self.grad_left is not None
        assert self.grad_right is not None
        weight, left, right = self.weight.double(), self.left.double(), self.right.double()
        grad_left, grad_right = self.grad_left.double(), self.grad_right.double()
        gradient = grad_left @ right + left @ grad_right - (grad_left @ grad_right if quadratic else 0)
        scores = gradient * (weight + self.scaling * left @ right)
        scores = scores**2 if square else scores.abs()
        return scores if scores.dim() == 3 else scores[None]


def apart(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    return float((actual - expected).abs().max() / expected.max())


@pytest.mark.parametrize("quadratic", [False, True])
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_the_sums_are_those_of_the_formula(
    way: Way, shape: tuple[int, int, int, int], square: bool, quadratic: bool
) -> None:
    sample = Sample.of(*shape)
    rows, columns = low_rank_sums(sample, square=square, quadratic=quadratic, way=way)
    expected = sample.scores(square=square, quadratic=quadratic)
    assert apart(rows, expected.sum(2)) < 2e-6
    assert apart(columns, expected.sum(1)) < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS)
def test_the_sums_of_a_weight_in_half_precision_are_those_of_its_values(way: Way, dtype: torch.dtype) -> None:
    sample = Sample.of(1, 70, 90, 8, dtype)
    rows, columns = low_rank_sums(sample, square=True, quadratic=False, way=way)
    expected = sample.scores(square=True, quadratic=False)
    allowed = 1e-3 if way is Way.TRITON and CUDA else 2e-6  # TF32
    assert apart(rows, expected.sum(2)) < allowed
    assert apart(columns, expected.sum(1)) < allowed


@pytest.mark.parametrize("way", WAYS)
def test_the_weight_and_its_factors_stay_as_they_are(way: Way) -> None:
    sample = Sample.of(1, 20, 30, 4)
    assert sample.grad_left is not None
    kept = [each.clone() for each in (sample.weight, sample.left, sample.right, sample.grad_left)]
    low_rank_sums(sample, square=True, quadratic=True, way=way)
    assert all(map(torch.equal, kept, (sample.weight, sample.left, sample.right, sample.grad_left)))


def test_without_gradients_there_is_nothing_to_sum() -> None:
    with pytest.raises(RuntimeError, match="after the backward pass"):
        low_rank_sums(replace(Sample.of(1, 4, 4, 2), grad_left=None), square=True, quadratic=False)


class Made(TorchDispatchMode):
    """The most bytes of any tensor that is made inside."""

    def __init__(self, *there: torch.Tensor) -> None:
        super().__init__()
        self._there = {each.untyped_storage().data_ptr() for each in there}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in self._there:
                self.most = max(self.most, each.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_makes_nothing_of_the_weight_s_size(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(low_rank, "HOST_ELEMENTS", 2000)
    sample = Sample.of(1, 200, 100, 2, dtype)
    with Made(sample.weight) as made:
        low_rank_sums(sample, square=True, quadratic=True, way=Way.TORCH)
    assert 0 < made.most <= 4 * 2000


@pytest.mark.parametrize("shape", [(1, 7, 5), (3, 7, 5), (40, 2, 2)])
def test_windows_cover_each_element_once(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "HOST_ELEMENTS", 16)
    seen = torch.zeros(shape)
    for window in windows(seen.shape, seen.device):
        assert seen[window].numel() <= 16
        seen[window] += 1
    assert bool((seen == 1).all())


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("capability", ["80", "90"])
@pytest.mark.parametrize(("dtype", "precision"), [("bf16", "tf32"), ("fp32", "tf32x3")])
def test_the_kernel_compiles_without_a_device(capability: str, dtype: str, precision: str) -> None:
    """In a process of its own, where nothing is interpreted."""
    script = Path(__file__).parents[1] / "compiled_kernel.py"
    path = os.pathsep.join(each for each in sys.path if each)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), capability, dtype, precision],
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) <= 99 * 1024  # what a block has on a consumer's card
