"""The teacher of self-distillation: the dense model that the tuned one came from, inside the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from passes.models import base_model, evaluation_mode, parameter_at, replaced, swapped, takes


class Teacher(Protocol):
    """Answers a batch with a model's outputs, by name."""

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model that answers."""

    @property
    def swaps(self) -> Sequence[nn.Parameter]:
        """The parameters of ``model`` that hold other values while it answers."""

    def __call__(self, **inputs: Any) -> Mapping[str, Any]:
        """The outputs."""


class FrozenBase:
    """Answers as the model did before tuning: masks off, no dropout, no gradients, and no second copy in memory.

    The adapter is off, or, where it was there before (its B is not zero), as it was when this object was made.
    ``masks_off`` is a context in which masks let everything through; ``originals`` are weights that a compensation has
    replaced, by plain name.
    """

    def __init__(
        self,
        model: PeftModel,
        masks_off: Callable[[], AbstractContextManager[None]],
        originals: Mapping[str, torch.Tensor],
    ) -> None:
        self._model, self._masks_off, self._originals = model, masks_off, originals
        adapter = [(name, p) for name, p in model.named_parameters() if p.requires_grad and ".lora_" in name]
        trained = any(bool(parameter.any()) for name, parameter in adapter if ".lora_B." in name)
        self._start = [(parameter, parameter.detach().clone()) for _, parameter in adapter] if trained else []

    @property
    def model(self) -> PreTrainedModel:
        """The model, which is the student's as well."""
        return base_model(self._model)

    @property
    def swaps(self) -> Sequence[nn.Parameter]:
        """Those that a compensation has changed, and those of an adapter that was there before."""
        return [*(parameter_at(self._model, name) for name in self._originals), *(p for p, _ in self._start)]

    def __call__(self, **inputs: Any) -> Mapping[str, Any]:
        """The dense model's outputs."""
        with self.on():
            outputs: Mapping[str, Any] = self._model(**_uncached(self.model, inputs))
        return outputs

    @contextmanager
    def on(self) -> Iterator[None]:
        """The model is the teacher, inside the block."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluation_mode(self._model))
            stack.enter_context(self._masks_off())
            stack.enter_context(swapped(self._start) if self._start else self._model.disable_adapter())
            stack.enter_context(replaced(self._model, self._there()))
            yield

    def _there(self) -> Mapping[str, torch.Tensor]:
        """The originals where the model is, brought there once."""
        device = next(self._model.parameters()).device
        if any(tensor.device != device for tensor in self._originals.values()):
            self._originals = {
                name: tensor.to(parameter_at(self._model, name).device) for name, tensor in self._originals.items()
            }
        return self._originals


class OtherModel:
    """A second model in memory as the teacher. It comes back with the training flags it had."""

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        self._model = model
        self.swaps: Sequence[nn.Parameter] = ()

    @property
    def model(self) -> PreTrainedModel:
        """The second model."""
        return base_model(self._model)

    def __call__(self, **inputs: Any) -> Mapping[str, Any]:
        """The model's outputs."""
        with torch.no_grad(), evaluation_mode(self._model):
            outputs: Mapping[str, Any] = self._model(**_uncached(self.model, inputs))
        return outputs


def _uncached(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs, and no cache of what nobody will go on from."""
    return {"use_cache": False, **inputs} if takes(model, "use_cache") else dict(inputs)
