"""Other tensors behind a model's own parameters, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from passes.models.base import parameter_at


@contextmanager
def replaced(model: PreTrainedModel | PeftModel, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The model with other tensors behind its own parameters (by plain name), inside the block.

    Only for forward passes without gradients.
    """
    with swapped([(parameter_at(model, name), tensor) for name, tensor in tensors.items()]):
        yield


@contextmanager
def swapped(pairs: Sequence[tuple[nn.Parameter, torch.Tensor]]) -> Iterator[None]:
    """Each parameter holds the tensor beside it, inside the block; likewise."""
    own = [parameter.data for parameter, _ in pairs]
    try:
        for parameter, tensor in pairs:
            parameter.data = tensor.to(parameter.device)
        yield
    finally:
        for (parameter, _), data in zip(pairs, own, strict=True):
            parameter.data = data
