"""Weights that training shards over the ranks: made whole again afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor


@contextmanager
def whole_afterwards(model: PeftModel) -> Iterator[None]:
    """Training inside the block may shard the model in place (FSDP2); afterwards it is as it was built, whole on each
    rank, with the trained values.

    FSDP2 puts sharded parameters in the place of the model's own, and classes and hooks of its own around them. None of
    that can be taken off again; so a twin without values is kept, which gets the gathered ones.
    """
    twin = _without_values(model)
    devices = {name: parameter.device for name, parameter in model.named_parameters()}
    yield
    trained = dict(model.named_parameters())
    for name, empty in list(twin.named_parameters()):
        value = _whole(trained[name].detach()).to(devices[name])
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, nn.Parameter(value, requires_grad=empty.requires_grad))
    base = twin.get_base_model()
    base.tie_weights()
    model.__class__ = type(twin)
    model.__dict__ = twin.__dict__


def _without_values(model: PeftModel) -> PeftModel:
    """A copy whose parameters are on the meta device; buffers, which are small, have their values."""
    memo = {
        id(each): nn.Parameter(torch.empty_like(each, device="meta"), requires_grad=each.requires_grad)
        for each in model.parameters()
    }
    twin: PeftModel = copy.deepcopy(model, memo)
    return twin


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter's values from all ranks that have a part of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
