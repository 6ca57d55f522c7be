"""Options and results of the benchmark; ``Benchmark.to_json`` is the format of ``benchmark.json``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from passes.errors import OptionError

SCHEMA_VERSION = 1

ModelName = Literal["dense", "pruned"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What is timed and how often.

    ``repeats`` counted rounds (four times as many for decode steps, which are short) after ``warmup`` uncounted ones; a
    round runs every model once, in alternating order. The rounds of a call end early, but not before 6, when they have
    taken ``max_seconds``; the rounds done are recorded. ``threads``: onnxruntime's threads, all cores if None.
    ``beyond_context``: also time sequences longer than the model's context, which says something of speed but not of
    use; such runs are marked.

    Raises ``OptionError``.
    """

    repeats: int = 15
    warmup: int = 2
    threads: int | None = None
    batches: tuple[int, ...] = (1, 8)
    prefill_tokens: tuple[int, ...] = (128, 512)
    decode_pasts: tuple[int, ...] = (128, 1024)
    max_seconds: float = 20.0
    beyond_context: bool = True

    def __post_init__(self) -> None:
        for name, lowest in (("repeats", 1), ("warmup", 0), ("threads", 1), ("max_seconds", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise OptionError(f"benchmark {name} must be at least {lowest}, not {value}")
        for name in ("batches", "prefill_tokens", "decode_pasts"):
            if any(value < 1 for value in getattr(self, name)):
                raise OptionError(f"benchmark {name} must be positive numbers, not {getattr(self, name)}")
        if not self.batches or not (self.prefill_tokens or self.decode_pasts):
            raise OptionError("benchmark needs a batch size, and a prefill length or a decode length")

    @property
    def thread_count(self) -> int:
        """Threads that onnxruntime gets."""
        return self.threads or os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model's times on one call, in milliseconds; ``tokens_per_s`` counts new tokens of all sequences.

    Of images, ``tokens`` and ``tokens_per_s`` are 0.

    ``beyond_context``: the sequence is longer than the model's context.
    """

    model: ModelName
    phase: str
    batch: int
    tokens: int
    past: int
    ms_median: float
    ms_p10: float
    ms_p90: float
    tokens_per_s: float
    repeats: int
    beyond_context: bool


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """One model's size. Peak memory is that of a process that does nothing but load it and prefill once, in bytes.

    ``baseline_bytes`` is what the process held before (interpreter and libraries); ``load_s`` is the session's load
    time.
    """

    path: str
    file_bytes: int
    kv_bytes_per_token: int
    context_length: int | None
    load_s: float
    baseline_bytes: int
    peak_loaded_bytes: int
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A call that is not timed, and why."""

    phase: str
    batch: int
    tokens: int
    past: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All measurements. ``ratios`` are pruned over dense: below 1 is smaller or faster."""

    machine: Mapping[str, Any]
    options: BenchmarkOptions
    models: Mapping[ModelName, Footprint]
    runs: tuple[Run, ...]
    skipped: tuple[Skipped, ...]
    ratios: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The content of ``benchmark.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "machine": dict(self.machine),
            "options": asdict(self.options),
            "models": {name: asdict(footprint) for name, footprint in self.models.items()},
            "runs": [asdict(run) for run in self.runs],
            "skipped": [asdict(each) for each in self.skipped],
            "ratios": dict(self.ratios),
        }
