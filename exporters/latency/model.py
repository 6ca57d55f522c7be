"""``latency_model``: a table that predicts what a workload takes on this machine, measured once and kept on disk."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from exporters.calls import OnnxFolder
from exporters.latency.blocks import BlockRoute
from exporters.latency.cache import default_cache, key_of, read_terms, write_terms
from exporters.latency.curve import Curve
from exporters.latency.machine import Machine
from exporters.latency.specimens import Key, Specimen, Terms
from exporters.latency.stock import StockRoute
from exporters.latency.table import LatencyTable
from exporters.latency.timing import (
    REPEATS,
    Sample,
    Timer,
    WorkloadStep,
    measured_latency,
    seconds_of,
    steps_of,
    thread_count,
    time_once,
)
from exporters.onnx import FLOAT32, PRECISIONS, Precision, has_builder, why_not_builder
from exporters.options import GROUP_QUERY, PLAIN
from passes.errors import OptionError, UnsupportedModelError
from passes.graph import PruningGraph
from passes.models import Task, model_class, task_of, twin_of
from passes.options import AUTO, Workload
from passes.pipeline import Progress, silent

__all__ = ["Curve", "LatencyTable", "latency_model", "measured_latency"]

logger = logging.getLogger(__name__)

RUNTIME = "onnxruntime-cpu"
STAGE = "latency"

IRRELEVANT = ("_name_or_path", "architectures", "dtype", "id2label", "initializer_range", "label2id", "torch_dtype")
"""Entries of a configuration that do not change the speed; neither do token ids and versions."""


def latency_model(
    model_or_config: PreTrainedModel | PreTrainedConfig,
    graph: PruningGraph,
    workload: Workload,
    *,
    runtime: str = RUNTIME,
    threads: int | None = None,
    dtype: str = FLOAT32.name,
    attention: str = AUTO,
    cache: Path | None = None,
    progress: Progress = silent,
    timer: Timer = time_once,
) -> LatencyTable:
    """The table that predicts the seconds of a workload for any kept counts of ``graph``.

    Small models with random weights of the same shapes are timed, about a minute for a model of 50M parameters; the
    weights of the model itself are not read. ``threads``: onnxruntime's, all cores if None. ``dtype``: type of the
    weights in the ONNX graph; ``attention``: as in ``OnnxOptions``. ``cache``: folder for tables (default: ``latency``
    in ``LPC_CACHE`` or ``~/.cache/lpc``).

    Raises OptionError (another runtime, impossible threads, a workload that decodes on a model without a cache) and
    UnsupportedModelError with the reason where the model cannot be timed.
    """
    if runtime != RUNTIME:
        raise OptionError(f"latency on {runtime!r} cannot be measured; there is {RUNTIME!r}")
    precision = PRECISIONS.named(dtype)
    threads, machine = thread_count(threads), Machine.here()
    config, model_type = _described(model_or_config)
    steps = _steps(model_type, workload)
    route = _route(model_type, config, graph, precision, machine, attention)
    facts = _facts(route, model_type, config, graph, workload, machine)
    facts |= {"runtime": runtime, "threads": threads, "dtype": dtype}
    path = (cache or default_cache()) / f"{key_of(facts)}.json"
    terms = read_terms(path, route.grid())
    if terms is None:
        _warn_if_busy(machine, path)
        terms = _measured(route, steps, threads, progress, timer)
        write_terms(path, terms, facts)
    return LatencyTable(workload, graph, terms.constant, terms.curves)


def _described(model_or_config: PreTrainedModel | PreTrainedConfig) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    if isinstance(model_or_config, PreTrainedConfig):
        return model_or_config, model_class(model_or_config)
    return model_or_config.config, type(model_or_config)


def _steps(model_type: type[PreTrainedModel], workload: Workload) -> tuple[WorkloadStep, ...]:
    task = task_of(model_type)
    if task is Task.SEQ2SEQ_LM:
        raise UnsupportedModelError("latency is timed for models in one ONNX graph; an encoder-decoder is in two")
    takes_images = task is Task.IMAGE_CLASSIFICATION
    return steps_of(workload, has_cache=task is Task.CAUSAL_LM, takes_images=takes_images)


def _route(
    model_type: type[PreTrainedModel],
    config: PreTrainedConfig,
    graph: PruningGraph,
    precision: Precision,
    machine: Machine,
    attention: str,
) -> BlockRoute | StockRoute:
    if has_builder(config) and task_of(model_type) is Task.CAUSAL_LM:
        reason = why_not_builder(twin_of(model_type, config))
        if reason is None:
            return BlockRoute.of(model_type, config, graph, precision, machine.cache_bytes, attention)
        logger.info("latency: timing the stock class: %s", reason)
    if precision is not FLOAT32:
        raise UnsupportedModelError(f"latency in {precision.name} is timed for what the graph builder writes; use fp32")
    return StockRoute(model_type, config, graph, machine.cache_bytes)


def _facts(
    route: BlockRoute | StockRoute,
    model_type: type[PreTrainedModel],
    config: PreTrainedConfig,
    graph: PruningGraph,
    workload: Workload,
    machine: Machine,
) -> dict[str, Any]:
    """Everything that the seconds depend on, besides versions, threads, runtime and type."""
    entries = {
        name: value
        for name, value in config.to_dict().items()
        if name not in IRRELEVANT and not name.endswith(("_token_id", "_version"))
    }
    return {
        "attention": GROUP_QUERY if isinstance(route, BlockRoute) and route.group_query else PLAIN,
        "machine": vars(machine),
        "class": model_type.__name__,
        "config": {name: repr(entries[name]) for name in sorted(entries)},
        "shapes": {name: list(shape) for name, shape in graph.shapes.items()},
        "workload": vars(workload),
        "grid": {name: list(counts) for name, counts in route.grid().items()},
    }


def _warn_if_busy(machine: Machine, path: Path) -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > machine.cores:
        logger.warning(
            "the machine is busy (load %.1f on %d cores), so the latency table will be off, more so with several "
            "threads; delete %s to measure again on a quiet one",
            load,
            machine.cores,
            path,
        )


def _measured(
    route: BlockRoute | StockRoute, steps: Sequence[WorkloadStep], threads: int, progress: Progress, timer: Timer
) -> Terms:
    """Time every specimen several times, in turn and in alternating order, one in memory at a time."""
    started, specimens = time.perf_counter(), route.specimens()
    samples: dict[Key, list[Sample]] = {specimen.key: [] for specimen in specimens}
    with tempfile.TemporaryDirectory(prefix="lpc-latency-") as scratch:
        for turn in range(REPEATS):
            for done, specimen in enumerate(specimens if turn % 2 == 0 else specimens[::-1]):
                with _written(specimen, Path(scratch)) as folder:
                    samples[specimen.key].append(timer(folder, steps, threads))
                progress(STAGE, turn * len(specimens) + done + 1, REPEATS * len(specimens))
    logger.info("latency: timed %d small models in %.0f s", len(specimens), time.perf_counter() - started)
    return route.terms({key: seconds_of(each, steps) for key, each in samples.items()})


@contextmanager
def _written(specimen: Specimen, scratch: Path) -> Iterator[OnnxFolder]:
    """The specimen's folder; it is removed after use, unless it took long to make."""
    folder = scratch / f"{specimen.key[0]}-{specimen.key[1]}"
    if not folder.exists():
        folder.mkdir()
        specimen.write(folder)
    yield OnnxFolder.find(folder)
    if not specimen.costly:
        shutil.rmtree(folder)
