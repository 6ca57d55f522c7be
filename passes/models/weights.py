"""Weights as scores see them: W0 + s·BA with what stands for its gradient, window by window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from passes.algebra import stacked

Window = tuple[slice, slice]
"""The entries of a stack, and the rows of each of them, that are looked at at a time."""


class Weight(Protocol):
    """A weight as the scores see it. Windows are [entries, rows, columns], fp32; a single matrix has one entry."""

    @property
    def weight(self) -> torch.Tensor:
        """The parameter as it is stored: [rows, columns] or a stack [entries, rows, columns]."""
        ...

    def merged(self, window: Window) -> torch.Tensor:
        """The weights that the model computes with, W0 + sBA, in the window."""
        ...

    def gradient(self, window: Window, *, quadratic: bool) -> torch.Tensor:
        """What stands for ∇W in the window."""
        ...


@dataclass(frozen=True)
class Projection:
    """A weight that wears LoRA, with the gradients of the last backward pass if there was one.

    ``weight`` is W0 as it is stored, [rows, columns] or a stack [entries, rows, columns]; ``left`` [..., rows, r] and
    ``right`` [..., r, columns] are the factors in the same layout, so that the model computes with W0 + s·left·right:
    B and A for a weight [out, in], Aᵀ and Bᵀ for one [in, out]. The gradients are unscaled and laid out likewise.
    """

    weight: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    grad_left: torch.Tensor | None
    grad_right: torch.Tensor | None
    scaling: float

    def merged(self, window: Window) -> torch.Tensor:
        """W0 + s·left·right in the window; fp32."""
        left, right = stacked(self.left)[window].float(), stacked(self.right)[window[0]].float()
        return stacked(self.weight)[window].float() + self.scaling * (left @ right)

    def gradient(self, window: Window, *, quadratic: bool) -> torch.Tensor:
        """gB·A + B·gA in the window, less gB·gA if ``quadratic``; fp32."""
        if self.grad_left is None or self.grad_right is None:
            raise RuntimeError("there are no gradients: scores are read after the backward pass")
        left, right = stacked(self.left)[window].float(), stacked(self.right)[window[0]].float()
        grad_left = stacked(self.grad_left)[window].float()
        grad_right = stacked(self.grad_right)[window[0]].float()
        gradient = grad_left @ right + left @ grad_right
        return gradient - grad_left @ grad_right if quadratic else gradient


@dataclass(frozen=True)
class DenseWeight:
    """A weight without an adapter, [rows, columns] or a stack [entries, rows, columns], and its own gradient."""

    weight: torch.Tensor
    grad: torch.Tensor | None = None

    def merged(self, window: Window) -> torch.Tensor:
        """The weight in the window; fp32."""
        return stacked(self.weight)[window].float()

    def gradient(self, window: Window, *, quadratic: bool) -> torch.Tensor:
        """∇W in the window; fp32. It has no quadratic term."""
        if self.grad is None:
            raise RuntimeError("there is no gradient: scores are read after the backward pass")
        return stacked(self.grad)[window].float()
