"""Options and results of the benchmark; ``Benchmark.to_json`` is the format of ``benchmark.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lpc.options import BenchmarkOptions

SCHEMA_VERSION = 2

ModelName = Literal["dense", "pruned"]

APART, APART_ALONE = 1.25, 1.6
"""The third quartile of a ratio over its first is about 1.05 on a quiet machine; so may the times of a model that is
timed alone differ, the slowest tenth left out and the fastest."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model's times on one call, in milliseconds; ``tokens_per_s`` counts new tokens of all sequences.

    A prefill of one sequence is the time to its first token. ``ratio``: of the pruned model's runs to the dense one's
    beside them, the quartiles; None where there is no dense one. Of images, ``tokens`` and ``tokens_per_s`` are 0.

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
    threads: int
    ratio: tuple[float, float, float] | None

    @property
    def unsure(self) -> bool:
        """Whether the machine was too busy to tell."""
        if self.ratio is None:
            return self.ms_p90 > APART_ALONE * self.ms_p10
        return self.ratio[2] > APART * self.ratio[0]

    @property
    def name(self) -> str:
        """The call in words."""
        length = f"past {self.past}" if self.phase == "decode" else f"tokens {self.tokens}"
        return f"{self.phase}, batch {self.batch}, {length}, threads {self.threads}"


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
    """All measurements. ``ratios`` are pruned over dense: below 1 is smaller or faster; of times, with the first number
    of threads.
    """

    machine: Mapping[str, Any]
    options: BenchmarkOptions
    models: Mapping[ModelName, Footprint]
    runs: tuple[Run, ...]
    skipped: tuple[Skipped, ...]
    ratios: Mapping[str, float]

    @property
    def unsure(self) -> tuple[str, ...]:
        """The calls for which the machine was too busy to tell."""
        return tuple(run.name for run in self.runs if run.model == "pruned" and run.unsure)

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
            "unsure": list(self.unsure),
        }
