"""Every check catches the faults planted in its own pass, in every dtype, before any later check could."""

from __future__ import annotations

import functools

import pytest
import torch
from workbench import build_model

from benchmarks.mutations import MUTATIONS, Mutation, merged, run, start
from passes.pipeline import Program

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def fresh(dtype: torch.dtype) -> Program:
    return start(build_model("qwen2").to(dtype))


@functools.cache
def ready(dtype: torch.dtype) -> Program:
    """A merged program, which is cut again and again."""
    return merged(fresh(dtype))


@EACH_DTYPE
def test_nothing_is_refused_where_nothing_is_planted(dtype: torch.dtype) -> None:
    assert run(fresh(dtype))[0] is None
    assert run(ready(dtype))[0] is None


@EACH_DTYPE
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: f"{each.stage}: {each.name}")
def test_a_planted_fault_is_caught_by_its_own_pass(mutation: Mutation, dtype: torch.dtype) -> None:
    caught, said = run(ready(dtype) if mutation.stage in ("shrink", "save") else fresh(dtype), mutation)
    assert caught == mutation.stage, said
