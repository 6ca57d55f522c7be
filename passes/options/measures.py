"""Measures: what a budget can limit, one entry each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from passes.errors import OptionError
from passes.registry import Registry

COUNTS: Mapping[str, float] = MappingProxyType({"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12})
BYTES: Mapping[str, float] = MappingProxyType(
    {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
)
SECONDS: Mapping[str, float] = MappingProxyType({"s": 1.0, "ms": 1e-3, "us": 1e-6})


AmountOf = Callable[[Any, Any], float]
"""What is left of a measure: from a ``passes.graph.PruningGraph`` and the units or counts that each dimension keeps
(absent: all)."""

_AMOUNT = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One thing that a budget can limit.

    ``amount`` computes it from the graph; None where a latency model of the machine predicts it (``needs_latency``). It
    is a sum of terms, each of one dimension or of those that share parameters: the layout per layer relies on that.
    ``linear``: it falls evenly with the units of any one dimension; others are asked at every count, which is slower.
    ``label`` is what people read, what is in brackets only in tables. ``units``: the suffixes that an amount may carry,
    in small letters, and what they multiply; without ``""`` a whole number is refused. ``example``: an amount as it is
    written. ``decimals``: digits that a fraction of the dense amount is rounded to, None for none. ``show`` writes an
    amount for messages.
    """

    name: str
    label: str
    amount: AmountOf | None
    linear: bool = False
    units: Mapping[str, float] = field(default_factory=lambda: COUNTS)
    example: str = "3.5B"
    decimals: int | None = 3
    show: Callable[[float], str] | None = None

    @property
    def needs_latency(self) -> bool:
        """Whether it is predicted by a latency model."""
        return self.amount is None

    @property
    def needs_unit(self) -> bool:
        """Whether a bare number says nothing."""
        return "" not in self.units

    def parsed(self, amount: int | str) -> float:
        """An absolute amount as a number. Raises OptionError."""
        if isinstance(amount, int):
            return float(amount)
        found = _AMOUNT.fullmatch(amount.strip())
        if found is None or found[2].lower() not in self.units:
            raise OptionError(f"{self.name}={amount!r} cannot be read: write it as in {self.quoted}")
        return float(found[1]) * self.units[found[2].lower()]

    @property
    def quoted(self) -> str:
        """The example, as it stands in a message."""
        return f'"{self.example}"'

    def share(self, fraction: float, dense: float) -> float:
        """A fraction of the dense amount."""
        # Without rounding, the floating-point error of a fraction can exclude a size that meets it exactly.
        return fraction * dense if self.decimals is None else round(fraction * dense, self.decimals)

    def shown(self, amount: float) -> str:
        """An amount for people, the number first."""
        return self.show(amount) if self.show else f"{amount:,.0f} {self.name.replace('_', ' ')}"


MEASURES = Registry("measure", Measure, "lpc.measures", name_of=lambda measure: measure.name)
"""All measures by name; grows with ``register_measure``, and by packages' entry points ``lpc.measures``."""


def register_measure(measure: Measure) -> None:
    """Make a measure of your own available to budgets by name. Raises OptionError if the name is taken."""
    MEASURES.add(measure.name, measure)


for _measure in (
    Measure(name="parameters", label="parameters", amount=lambda graph, kept: graph.parameters(kept), linear=True),
    Measure(
        name="macs",
        label="MACs a token (linear layers)",
        amount=lambda graph, kept: graph.cost(kept).macs,
        linear=True,
    ),
    Measure(
        name="weight_bytes",
        label="weight bytes",
        amount=lambda graph, kept: graph.cost(kept).weight_bytes,
        linear=True,
        units=BYTES,
        example="7GB",
    ),
    Measure(
        name="kv_cache_bytes",
        label="KV-cache bytes a token",
        amount=lambda graph, kept: graph.cost(kept).kv_cache_bytes,
        linear=True,
        units=BYTES,
        example="64KiB",
    ),
    Measure(
        name="latency",
        label="latency",
        amount=None,
        units=SECONDS,
        example="12ms",
        decimals=None,
        show=lambda seconds: f"{seconds * 1e3:.3f} ms",
    ),
):
    register_measure(_measure)
