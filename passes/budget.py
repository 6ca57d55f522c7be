"""The budget: what the compact model may cost at most, in one measure or several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from passes.errors import OptionError

Kept: TypeAlias = Mapping[str, int | Sequence[int]]
"""How many units a dimension keeps, or which ones, by the dimension's name (absent: all)."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a served model does for one batch: read ``prefill`` tokens at once, then write ``decode`` tokens one by one.

    Its latency is the seconds of that: one prefill call and ``decode`` calls of one token, at the mean past length
    ``prefill + decode // 2``.
    """

    batch: int = 1
    prefill: int = 128
    decode: int = 32

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise OptionError(f"a workload's batch must be at least 1, got {self.batch}")
        if self.prefill < 0 or self.decode < 0 or not self.prefill + self.decode:
            raise OptionError(
                f"a workload's prefill and decode are numbers of tokens, got {self.prefill} and {self.decode}"
            )


class LatencyModel(Protocol):
    """Predicts the seconds that a workload takes on one machine and runtime, for any choice of kept counts.

    The prediction is additive: a constant (embedding and head), and a term a dimension that depends on its kept count
    alone (a layer's attention by its heads, a layer's MLP by its channels).
    """

    def seconds(self, kept: Kept) -> float:
        """Seconds of the workload."""
        ...

    def dimension_seconds(self, name: str, count: int) -> float:
        """The term of one dimension that keeps ``count`` units, 0 for dimensions that do not enter."""
        ...
