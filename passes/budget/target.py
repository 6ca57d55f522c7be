"""The target: what the user asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from passes.budget.budget import Budget
from passes.budget.comparison import Comparison
from passes.checked import check_numbers
from passes.errors import OptionError


class Layout(StrEnum):
    """How widths relate across layers."""

    UNIFORM = "uniform"
    """Every layer ends with the same widths: a plain configuration says them."""
    PER_LAYER = "per-layer"
    """Each layer has its own, by importance: a modelling file lies beside the weights."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the user asked for: the budget, or short for one of parameters the ``ratio`` of them that goes; the layout.

    ``multiple``: MLP widths are multiples of it (default: 64 from 1024 channels up, else 8). ``min_heads`` and
    ``min_channels``: the least that a layer keeps. ``protect``: layers that stay whole, such as ``layers.0`` or
    ``layers.-1``. ``freeze``: dimensions that stay whole, by name, width or kind. ``comparison``: how scores of
    different dimensions become comparable, for the layout per layer.
    """

    ratio: float | None = None
    budget: Budget | None = None
    layout: Layout | str = Layout.UNIFORM
    multiple: int | None = None
    min_heads: int = 1
    min_channels: int = 1
    protect: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    comparison: Comparison | str = Comparison.KIND

    def __post_init__(self) -> None:
        check_numbers(self)
        if (self.ratio is None) == (self.budget is None):
            raise OptionError(
                "say what to reach with either ratio or budget, such as ratio=0.3 (--ratio 0.3): one of them, not both"
            )
        for name, kind in (("layout", Layout), ("comparison", Comparison)):
            value = getattr(self, name)
            if value not in list(kind):
                raise OptionError(f"{name} {value!r} is unknown: choose one of {', '.join(kind)}")
            object.__setattr__(self, name, kind(value))
        for name in ("multiple", "min_heads", "min_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} must be at least 1, got {value}")
        if self.protect and self.layout is Layout.UNIFORM:
            raise OptionError(
                f"protect={list(self.protect)} makes layers differ, which the uniform layout cannot: "
                "choose layout='per-layer'"
            )
        assert self.wanted

    @property
    def wanted(self) -> Budget:
        """The budget."""
        if self.budget is not None:
            return self.budget
        assert self.ratio is not None
        return Budget.removing(self.ratio)

    @property
    def options(self) -> dict[str, Any]:
        """The options that differ from the defaults, as plain values, for a plan."""
        default = Target(ratio=0.5)
        names = ("multiple", "min_heads", "min_channels", "protect", "freeze", "comparison")
        values = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(default, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
