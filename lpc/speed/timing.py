"""Times of several models side by side, fair to each of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from exporters.calls import Call, Graph, OnnxFolder
from lpc.options import BenchmarkOptions
from lpc.speed.result import ModelName

logger = logging.getLogger(__name__)

MIN_ROUNDS = 3
"""Rounds of one half that are always done, however long they take."""

DECODE_FACTOR = 4
"""A decode step is short and noisy, so it gets this many times the rounds of a prefill."""

Times = dict[ModelName, list[float]]


def time_models(
    folders: Mapping[ModelName, OnnxFolder],
    calls: Sequence[Call],
    options: BenchmarkOptions,
    threads: int,
    tick: Callable[[int], None],
) -> list[Times]:
    """Seconds of every counted run of every model, a call; equally many for each model, and paired by index.

    The models take turns. They are loaded twice, in both orders, for half of the rounds each: the session that a
    process loads first runs up to a tenth slower (measured with one model loaded three times, docs/onnx.md). ``tick``
    is told of turns as they are done, ``turns`` in all.
    """
    found: list[Times] = [{name: [] for name in folders} for _ in calls]
    for half, rounds in enumerate(_halves(options)):
        names = list(folders) if half == 0 else list(folders)[::-1]
        graphs = {name: Graph(folders[name], threads, options.provider) for name in names} if rounds else {}
        for call, times in zip(calls, found, strict=True):
            if rounds:
                _take_turns(graphs, call, rounds, options, times, tick)
    return found


def turns(calls: Sequence[Call], options: BenchmarkOptions) -> int:
    """Turns of all models on all calls, in both halves, the warm-up among them."""
    return sum(options.warmup + _rounds(call, rounds) for rounds in _halves(options) if rounds for call in calls)


def _halves(options: BenchmarkOptions) -> tuple[int, int]:
    return options.repeats - options.repeats // 2, options.repeats // 2


def _rounds(call: Call, rounds: int) -> int:
    return rounds * DECODE_FACTOR if call.phase == "decode" else rounds


def _take_turns(
    graphs: Mapping[ModelName, Graph],
    call: Call,
    rounds: int,
    options: BenchmarkOptions,
    times: Times,
    tick: Callable[[int], None],
) -> None:
    """Append the seconds of ``rounds`` rounds, or of fewer if they take too long."""
    rounds = _rounds(call, rounds)
    ready = {name: graph.ready(call) for name, graph in graphs.items()}
    started = time.perf_counter()
    for turn in range(-options.warmup, rounds):
        for name in list(graphs) if turn % 2 == 0 else list(graphs)[::-1]:
            start = time.perf_counter()
            ready[name]()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
        tick(1)
        if turn + 1 >= MIN_ROUNDS and time.perf_counter() - started > options.max_seconds / 2:
            logger.info("%s: stopped after %d of %d rounds", call.key, turn + 1, rounds)
            tick(rounds - turn - 1)
            return
