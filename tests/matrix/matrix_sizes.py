"""Tracing the well-known checkpoints at their real size on the meta device: seconds, memory, exact parameter counts."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
from real_configs import REAL

from passes.pipeline.records import measured
from passes.trace import trace


@dataclass(frozen=True)
class Size:
    """``mebibytes``: the peak of resident memory above what the process had before."""

    name: str
    parameters: int
    units: dict[str, int]
    seconds: float
    mebibytes: float


def real_sizes() -> list[Size]:
    """All of them, one after another. Raises AssertionError if a parameter count is not the published one."""
    return [_traced(name) for name in REAL]


def _traced(name: str) -> Size:
    model_type, config, published = REAL[name]
    before = psutil.Process().memory_info().rss
    with measured() as measurement:
        graph = trace(config(), model_type=model_type)
    if graph.parameters() != published:
        raise AssertionError(f"{name}: the graph has {graph.parameters():,} parameters, published are {published:,}")
    above = (measurement.peak_memory_bytes - before) / 2**20
    units = {width.name: width.size for width in graph.widths}
    return Size(name, published, units, measurement.seconds, max(0.0, above))
