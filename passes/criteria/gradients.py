"""True gradients of base weights, for the criteria that read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from passes.criteria.base import AnyModel
from passes.errors import OptionError
from passes.models import DenseWeight, Weight, Window, is_packed, parameter_at
from passes.ranks import mean_over_ranks


class TrueGradients:
    """Asks for the gradients of base weights between ``begin`` and ``end``.

    Since the optimizer was made before, it never moves them. They take the memory of the weights themselves.
    """

    def __init__(self) -> None:
        self._asked: dict[str, nn.Parameter] = {}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights whose gradients are asked for, by name."""
        return self._asked

    def begin(self, model: AnyModel, names: Iterable[str]) -> None:
        """Ask for the gradients of these weights. Raises OptionError for one of 8- or 4-bit numbers."""
        self._asked = {name: parameter_at(model, name) for name in names}
        packed = next((name for name, each in self._asked.items() if is_packed(each)), None)
        if packed is not None:
            self._asked = {}
            raise OptionError(
                f"{packed} has no gradient, it holds 8- or 4-bit numbers: choose a criterion that reads adapters or "
                "activations, such as obs or loraprune"
            )
        for parameter in self._asked.values():
            parameter.requires_grad_(True)

    def take(self, loss_scale: float) -> dict[str, torch.Tensor]:
        """The unscaled mean over ranks of what has come together, by name; it is freed in the model."""
        taken = {}
        for name, parameter in self._asked.items():
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                raise RuntimeError(f"{name} has no gradient: scores are read after the backward pass")
            taken[name] = mean_over_ranks(gradient).div_(loss_scale)
        return taken

    def end(self) -> None:
        """Ask for them no longer."""
        for parameter in self._asked.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        self._asked = {}


@dataclass(frozen=True)
class Graded:
    """A weight W = W0 + sBA and its true gradient: ∇W is that of W0, since both enter the sum alike."""

    values: Weight
    grad: torch.Tensor

    @property
    def weight(self) -> torch.Tensor:
        """The parameter as it is stored."""
        return self.values.weight

    def merged(self, window: Window) -> torch.Tensor:
        """W0 + sBA in the window; fp32."""
        return self.values.merged(window)

    def gradient(self, window: Window, *, quadratic: bool) -> torch.Tensor:
        """∇W in the window; fp32. It has no quadratic term."""
        return DenseWeight(self.values.weight, self.grad).gradient(window, quadratic=quadratic)
