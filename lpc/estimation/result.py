"""What an estimate says: memory, operations and time, stage by stage, for two ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from passes.pipeline import plain


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """What one stage holds at most, in bytes on the device, and how much it computes; seconds at the rate."""

    name: str
    memory_bytes: int
    flops: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Bill:
    """The stages of a run, and one step of its tuning."""

    stages: tuple[StageEstimate, ...]
    step_flops: float
    step_seconds: float

    @property
    def peak(self) -> StageEstimate:
        """The stage that holds most."""
        return max(self.stages, key=lambda stage: stage.memory_bytes)

    @property
    def flops(self) -> float:
        """Of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def hours(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages) / 3600


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will cost. Memory is that of the device without the interpreter and its libraries.

    ``rate`` are operations a second, ``measured`` on this machine or stated. ``true_gradient`` is the same run with
    units ranked while tuning by the gradients of all weights, which are kept. ``remedy`` says which option to change
    and to what if ``device_bytes`` do not suffice; None if they do or nothing helps.
    """

    model: str
    parameters: int
    kept: float
    rate: float
    measured: bool
    device_bytes: int | None
    method: Bill
    true_gradient: Bill
    remedy: str | None

    @property
    def fits(self) -> bool:
        """Whether the run fits on the device, if one was named."""
        return self.device_bytes is None or self.method.peak.memory_bytes <= self.device_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values: dict[str, Any] = plain(self)
        for name, way in (("method", self.method), ("true_gradient", self.true_gradient)):
            values[name] |= {"peak": way.peak.name, "flops": way.flops, "hours": way.hours}
        return values | {"fits": self.fits}
