"""Instruments around passes: time and peak memory, measured from outside the pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import psutil
import torch

from passes.models import Parity

SAMPLING_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class PassRecord:
    """What one pass did: its options, wall-clock seconds, peak memory in bytes, and verified parities.

    ``report`` holds the pass's own numbers, a frozen dataclass.
    """

    name: str
    options: Mapping[str, Any]
    seconds: float
    peak_memory_bytes: int
    modified: bool
    parity: tuple[Parity, ...] = ()
    report: object | None = None


@dataclass
class Measurement:
    """Seconds and peak memory of a block; filled in when the block ends."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0


class _PeakSampler(threading.Thread):
    """Samples the resident set size of this process and the memory of its GPU tensors until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process()
        self._stopped = threading.Event()
        self.peak = int(self._process.memory_info().rss)
        self.device_peak = 0

    def run(self) -> None:
        while not self._stopped.wait(SAMPLING_SECONDS):
            self.look()

    def look(self) -> None:
        """One sample."""
        self.peak = max(self.peak, int(self._process.memory_info().rss))
        if torch.cuda.is_available():
            self.device_peak = max(self.device_peak, int(torch.cuda.memory_allocated()))

    def __enter__(self) -> _PeakSampler:
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stopped.set()
        self.join()
        self.look()


@contextmanager
def measured() -> Iterator[Measurement]:
    """Measures a block: wall-clock seconds, and the peak of resident memory plus that of the GPU's.

    The allocator's own peak is the caller's and is not reset: it is taken where the block raised it, else the samples'.
    """
    measurement = Measurement()
    on_device = torch.cuda.is_available()
    highest = torch.cuda.max_memory_allocated() if on_device else 0
    start = time.perf_counter()
    sampler = _PeakSampler()
    try:
        with sampler:
            yield measurement
    finally:
        measurement.seconds = time.perf_counter() - start
        measurement.peak_memory_bytes = sampler.peak
        if torch.cuda.is_available():
            raised = torch.cuda.max_memory_allocated()
            measurement.peak_memory_bytes += raised if raised > highest else sampler.device_peak
