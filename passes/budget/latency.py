"""What a budget of latency asks a machine."""

from __future__ import annotations

from typing import Protocol

from passes.graph import Kept


class LatencyModel(Protocol):
    """Predicts the seconds that a workload takes on one machine and runtime, for any choice of kept counts.

    The prediction is additive: a constant (embedding and head), and a term a dimension that depends on its kept count
    alone (a layer's attention by its heads, a layer's MLP by its channels).
    """

    def seconds(self, kept: Kept) -> float:
        """Seconds of the workload."""
        ...

    def dimension_seconds(self, name: str, count: float) -> float:
        """The term of one dimension that keeps ``count`` units, 0 for dimensions that do not enter."""
        ...
