"""The target: what the user asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from passes.errors import OptionError
from passes.options.budget import Budget
from passes.options.check import check
from passes.options.option import Group, option

RATIO = 0.2
"""What goes where nothing is said."""


class Layout(StrEnum):
    """How widths relate across layers."""

    UNIFORM = "uniform"
    """Every layer ends with the same widths: a plain configuration says them."""
    PER_LAYER = "per-layer"
    """Each layer has its own, by importance: a modelling file lies beside the weights."""


class Comparison(StrEnum):
    """How scores become comparable across dimensions; docs/budgets.md has the evidence."""

    RAW = "raw"
    """As the criterion gives them."""
    KIND = "kind"
    """The units of each kind have the same mean importance a parameter; layers compete inside a kind as scored."""
    DIMENSION = "dimension"
    """Each dimension has the same mean importance a parameter; only the spread inside a dimension counts."""


class Balance(StrEnum):
    """How the uniform layout shares what goes between heads and channels; docs/budgets.md has the evidence."""

    MEASURED = "measured"
    """Where units are ranked before tuning, by the loss under the masks of each way."""
    EQUAL = "equal"
    """Both give the same share of their units."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the user asked for: the budget, or short for one of parameters the ``ratio`` of them that goes; the layout.

    Where neither is given, the ratio is ``RATIO``.
    """

    ratio: float | None = option(
        None,
        above=0,
        below=1,
        hint="0.3 removes 30 % of the parameters",
        help=f"Share of all parameters to remove; short for a budget of parameters, and {RATIO} where there is none.",
        group=Group.REMOVE,
        common=True,
    )
    budget: Budget | None = option(
        None,
        help="What may stay: parameters, macs, weight_bytes, kv_cache_bytes or latency, as a fraction of dense (0.5) "
        "or absolute (3.5B, 7GB, 12ms); several hold together.",
        group=Group.REMOVE,
        common=True,
        metavar="MEASURE=AMOUNT",
        words=str,
        read=Budget.parse,
        repeated=True,
    )
    layout: Layout | str = option(
        Layout.UNIFORM,
        help="uniform: the same widths in every layer. per-layer: each layer its own, by importance.",
        group=Group.REMOVE,
        common=True,
    )
    multiple: int | None = option(
        None,
        least=1,
        help="Round MLP widths to multiples of this; by default 64 from 1024 channels up, else 8.",
        group=Group.REMOVE,
        common=True,
    )
    min_heads: int = option(
        1, least=1, help="Least KV heads (or query heads, if these go) that a layer keeps.", group=Group.REMOVE
    )
    min_channels: int = option(1, least=1, help="Least MLP channels that a layer keeps.", group=Group.REMOVE)
    protect: tuple[str, ...] = option(
        (),
        help="Layers that stay whole, such as layers.0 or layers.-1.",
        group=Group.REMOVE,
        metavar="LAYER",
        repeated=True,
    )
    freeze: tuple[str, ...] = option(
        (),
        help="Dimensions that stay whole, by name, width or kind, such as kv_groups.",
        group=Group.REMOVE,
        metavar="NAME",
        repeated=True,
    )
    balance: Balance | str = option(
        Balance.MEASURED,
        help="How the uniform layout shares what goes between heads and MLP channels where units are ranked before "
        "tuning. measured: the way whose masks leave the least loss. equal: the same share of both.",
        group=Group.REMOVE,
    )
    comparison: Comparison | str = option(
        Comparison.KIND,
        help="How scores of different layers compare where layers compete: raw, kind or dimension (docs/budgets.md).",
        group=Group.REMOVE,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.ratio is None and self.budget is None:
            object.__setattr__(self, "ratio", RATIO)
        if self.ratio is not None and self.budget is not None:
            raise OptionError(
                "say what to reach with either ratio or budget, such as ratio=0.3 (--ratio 0.3): one of them, not both"
            )
        if self.protect and self.layout is Layout.UNIFORM:
            raise OptionError(
                f"protect={list(self.protect)} makes layers differ, which the uniform layout cannot: "
                "choose layout='per-layer'"
            )

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
        names = ("multiple", "min_heads", "min_channels", "protect", "freeze", "balance", "comparison")
        values = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(default, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
