"""``benchmark``: how fast and how large a pruned ONNX package is, against the dense one, in onnxruntime."""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from exporters.calls import Call, OnnxFolder, call_grid, forward_grid, provider_named
from exporters.latency import processor
from lpc.options import BenchmarkOptions
from lpc.report import record
from lpc.speed.result import Benchmark, Footprint, ModelName, Run, Skipped
from lpc.speed.timing import Times, time_models, turns
from passes.errors import ModelError, OptionError
from passes.pipeline import Progress, silent

__all__ = ["Benchmark", "BenchmarkOptions", "benchmark"]

logger = logging.getLogger(__name__)

BENCHMARK_FILE = "benchmark.json"
STAGE = "benchmark"
PROBE_TIMEOUT_SECONDS = 600


def benchmark(
    folder: Path,
    against: Path | None = None,
    options: BenchmarkOptions | None = None,
    progress: Progress = silent,
) -> Benchmark:
    """Time ``folder`` (the pruned model) and ``against`` (the dense one) together; write ``folder/benchmark.json``.

    Each is an lpc output or an ONNX folder. A time ratio is the median of the ratios of neighbouring runs, so that
    what slows the machine for a while slows both; see ``lpc.timing`` for how the models take turns.

    Decoders are timed at prefill and decode, models without a cache (encoders, image models) at their one call.

    Raises ``MissingFileError``, ``ModelError`` (onnxruntime refuses a model), ``UnsupportedModelError`` (an
    encoder-decoder), ``OptionError``, ``OutputError``.
    """
    options = options or BenchmarkOptions()
    provider_named(options.provider)
    folders: dict[ModelName, OnnxFolder] = {"pruned": OnnxFolder.find(folder)}
    if against is not None:
        folders = {"dense": OnnxFolder.find(against), **folders}
    calls, skipped = _choose(options, list(folders.values()))
    footprints, times = _measured(folders, calls, options, progress)
    context = _context(list(folders.values()))
    runs = [
        _run(name, call, taken, threads, context)
        for threads, by_call in times.items()
        for call, taken in by_call.items()
        for name in taken
    ]
    found = Benchmark(
        machine=_machine(options),
        options=options,
        models=footprints,
        runs=tuple(runs),
        skipped=tuple(skipped),
        ratios={**_time_ratios(times[options.thread_counts[0]]), **_size_ratios(footprints)},
    )
    record(folder, {BENCHMARK_FILE: json.dumps(found.to_json(), indent=1) + "\n"})
    return found


def _measured(
    folders: Mapping[ModelName, OnnxFolder], calls: Sequence[Call], options: BenchmarkOptions, progress: Progress
) -> tuple[dict[ModelName, Footprint], dict[int, dict[Call, Times]]]:
    """The size of each model, and with each number of threads the times of all calls."""
    done, total = 0, len(folders) + len(options.thread_counts) * turns(calls, options)

    def tick(count: int) -> None:
        nonlocal done
        done += count
        progress(STAGE, done, total)

    tick(0)
    footprints = {}
    for name, each in folders.items():
        footprints[name] = _footprint(each, calls, options)
        tick(1)
    times = {
        threads: dict(zip(calls, time_models(folders, calls, options, threads, tick), strict=True))
        for threads in options.thread_counts
    }
    return footprints, times


def _choose(options: BenchmarkOptions, folders: Sequence[OnnxFolder]) -> tuple[list[Call], list[Skipped]]:
    """Workloads that fit into every model's context, and the others with the reason."""
    limit, bounded = _context(folders), any(each.bounded for each in folders)
    chosen, skipped = [], []
    for call in _grid(options, folders, limit):
        if limit is None or call.length <= limit or (options.beyond_context and not bounded):
            chosen.append(call)
            continue
        reason = f"{call.length} tokens are more than the model's context of {limit}"
        logger.warning("benchmark leaves out %s: %s", call.key, reason)
        skipped.append(Skipped(**asdict(call), reason=reason))
    return chosen, skipped


def _grid(options: BenchmarkOptions, folders: Sequence[OnnxFolder], limit: int | None) -> list[Call]:
    """Prefill and decode of decoders; the one call of other models, at their longest if no asked-for length fits."""
    if len({(each.has_cache, each.takes_images) for each in folders}) > 1:
        raise OptionError(
            "the two models are not of one kind (a decoder, an encoder, an image model): name two that are"
        )
    if folders[0].has_cache:
        return call_grid(options.batches, options.prefill_tokens, options.decode_pasts)
    if folders[0].takes_images:
        return forward_grid(options.batches, (0,))
    lengths = options.prefill_tokens or (limit or 1,)
    fits = limit is None or min(lengths) <= limit
    return forward_grid(options.batches, lengths if fits else (*lengths, limit or 1))


def _context(folders: Sequence[OnnxFolder]) -> int | None:
    """The shortest context of the models, in tokens; None if none says."""
    return min((each.context_length for each in folders if each.context_length is not None), default=None)


def _run(name: ModelName, call: Call, taken: Times, threads: int, context: int | None) -> Run:
    seconds = taken[name]
    low, median, high = (float(1000 * value) for value in np.percentile(seconds, (10, 50, 90)))
    return Run(
        model=name,
        **asdict(call),
        ms_median=median,
        ms_p10=low,
        ms_p90=high,
        tokens_per_s=call.batch * call.tokens / statistics.median(seconds),
        repeats=len(seconds),
        beyond_context=context is not None and call.length > context,
        threads=threads,
        ratio=_quartiles(taken) if name == "pruned" and "dense" in taken else None,
    )


def _footprint(folder: OnnxFolder, calls: Sequence[Call], options: BenchmarkOptions) -> Footprint:
    prefills = [each for each in calls if each.phase != "decode"]
    largest = max(prefills, key=lambda each: each.batch * each.tokens, default=None)
    batch, tokens = (largest.batch, largest.tokens) if largest else (1, 1)
    arguments = [str(folder.path.parent), str(options.thread_counts[0]), str(batch), str(tokens), options.provider]
    probe = _probe(arguments)
    return Footprint(
        path=str(folder.path),
        file_bytes=folder.file_bytes,
        context_length=folder.context_length,
        **probe,
    )


def _probe(arguments: Sequence[str]) -> dict[str, Any]:
    """What ``exporters.calls.probe`` measures in a process of its own. Raises ``ModelError`` if it fails."""
    roots = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))}
    command = [sys.executable, "-m", "exporters.calls.probe", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=PROBE_TIMEOUT_SECONDS, env=environment
        )
    except subprocess.SubprocessError as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip()[-500:]
        raise ModelError(f"the memory probe of {arguments[0]} failed: {detail}") from error
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _time_ratios(times: Mapping[Call, Times]) -> dict[str, float]:
    """Pruned over dense, a call: the median over pairs of neighbouring runs."""
    return {call.key: _quartiles(both)[1] for call, both in times.items() if "dense" in both}


def _quartiles(both: Times) -> tuple[float, float, float]:
    """Of the ratios of the pruned model's runs to the dense one's beside them."""
    low, middle, high = np.percentile(np.array(both["pruned"]) / np.array(both["dense"]), (25, 50, 75))
    return float(low), float(middle), float(high)


def _size_ratios(footprints: Mapping[ModelName, Footprint]) -> dict[str, float]:
    """Pruned over dense: file size, cache, peak memory, load time."""
    if "dense" not in footprints:
        return {}
    pruned, dense = (asdict(footprints[name]) for name in ("pruned", "dense"))
    names = ("file_bytes", "kv_bytes_per_token", "peak_memory_bytes", "load_s")
    return {name: pruned[name] / dense[name] for name in names if dense[name]}


def _machine(options: BenchmarkOptions) -> dict[str, Any]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": list(options.thread_counts),
        "load_average_1min": load,
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "provider": provider_named(options.provider),
    }
