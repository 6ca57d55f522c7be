"""Copies to the host."""

from __future__ import annotations

import torch

from passes.algebra import on_cpu


def test_tensors_come_back_by_name_in_order_and_shape() -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.zeros(0), "c": torch.tensor(7.0)}
    found = on_cpu(tensors)
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_nothing_is_nothing() -> None:
    assert on_cpu({}) == {}
