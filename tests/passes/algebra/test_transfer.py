"""Copies to the host."""

from __future__ import annotations

import pytest
import torch

from passes.algebra import Answer, on_cpu


def test_tensors_come_back_by_name_in_order_and_shape() -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.zeros(0), "c": torch.tensor(7.0)}
    found = on_cpu(tensors)
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_nothing_is_nothing() -> None:
    assert on_cpu({}) == {}


@pytest.mark.parametrize("value", [True, False])
def test_an_answer_is_there_at_once_on_a_processor(value: bool) -> None:
    for answer in (Answer(value), Answer(torch.tensor(value))):
        assert answer.ready
        assert bool(answer) is value


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("value", [True, False])
def test_an_answer_of_a_device_is_waited_for(value: bool) -> None:
    answer = Answer(torch.tensor(value, device="cuda"))
    assert bool(answer) is value
    assert answer.ready
