"""Seconds of a workload on a whole ONNX model, measured: what the latency table predicts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeAlias

from exporters.calls import Call, Graph, OnnxFolder
from passes.errors import OptionError
from passes.options import Workload

REPEATS = 3
"""How often a model is loaded and timed: memory that it happens to get, and neighbours on the machine, change."""

PREFILL_RUNS, DECODE_RUNS = 4, 12
MAX_SECONDS = 0.8
"""Counted runs of a call each time that the model is loaded, after one uncounted; fewer if they take longer."""

Sample: TypeAlias = Sequence[Sequence[float]]
"""Seconds of every counted run of every call of a workload, from one loading."""


@dataclass(frozen=True)
class WorkloadStep:
    """A call of a workload, and how often the workload makes it."""

    call: Call
    times: int


Timer: TypeAlias = Callable[[OnnxFolder, Sequence[WorkloadStep], int], Sample]
"""Loads a model, with that many threads, and times a workload's calls."""


def steps_of(workload: Workload, *, has_cache: bool, takes_images: bool) -> tuple[WorkloadStep, ...]:
    """The calls that a workload makes of a model. Raises OptionError where a model without a cache is to decode."""
    batch, read, written = workload.batch, workload.prefill, workload.decode
    if not has_cache:
        if written:
            raise OptionError(f"a model without a cache writes no tokens: give a workload with decode=0, not {written}")
        tokens = 0 if takes_images else read
        return (WorkloadStep(Call(phase="forward", batch=batch, tokens=tokens, past=0), 1),)
    prefill = WorkloadStep(Call(phase="prefill", batch=batch, tokens=read, past=0), 1)
    decode = WorkloadStep(Call(phase="decode", batch=batch, tokens=1, past=read + written // 2), written)
    return tuple(step for step in (prefill, decode) if step.call.tokens and step.times)


def thread_count(threads: int | None) -> int:
    """Threads that onnxruntime gets: all cores if None. Raises OptionError."""
    if threads is not None and threads < 1:
        raise OptionError(f"threads must be at least 1, not {threads}")
    return threads or os.cpu_count() or 1


def time_once(folder: OnnxFolder, steps: Sequence[WorkloadStep], threads: int) -> Sample:
    """Load the model and time every call of a workload. Raises ``ModelError`` if onnxruntime refuses it.

    The runs of one call follow each other, as the tokens of a text do: weights that fit into the processor's cache stay
    there, others are read from memory every time. With one thread it is the processor time of this thread, which is the
    wall time of a machine with nothing else to do; with more it is wall time.
    """
    graph, clock = Graph(folder, threads), time.thread_time if threads == 1 else time.perf_counter
    return [list(_runs(graph, step.call, clock)) for step in steps]


def _runs(graph: Graph, call: Call, clock: Callable[[], float]) -> Iterator[float]:
    feeds = graph.feeds(call)
    graph.run(feeds)
    started = time.perf_counter()
    for _ in range(DECODE_RUNS if call.phase == "decode" else PREFILL_RUNS):
        start = clock()
        graph.run(feeds)
        yield clock() - start
        if time.perf_counter() - started > MAX_SECONDS:
            return


def seconds_of(samples: Sequence[Sample], steps: Sequence[WorkloadStep]) -> float:
    """Seconds of the workload, from the median of each call's runs over all loadings."""
    pooled = ([run for sample in samples for run in sample[index]] for index in range(len(steps)))
    return sum(step.times * median(runs) for step, runs in zip(steps, pooled, strict=True))


def measured_latency(
    folder: Path, workload: Workload, *, threads: int | None = None, repeats: int = REPEATS, timer: Timer = time_once
) -> float:
    """Seconds that a workload takes on the ONNX model in ``folder`` (an lpc output, or an ONNX folder).

    The model is loaded ``repeats`` times. ``threads``: onnxruntime's threads, all cores if None.

    Raises ``MissingFileError``, ``ModelError``, ``UnsupportedModelError`` (an encoder-decoder), ``OptionError``.
    """
    if repeats < 1:
        raise OptionError(f"repeats must be at least 1, not {repeats}")
    found = OnnxFolder.find(folder)
    steps = steps_of(workload, has_cache=found.has_cache, takes_images=found.takes_images)
    return seconds_of([timer(found, steps, thread_count(threads)) for _ in range(repeats)], steps)
