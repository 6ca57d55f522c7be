"""estimate(): the cost of a run from the configuration alone, for the method and for the true-gradient criterion."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Unpack, cast

import torch

from lpc.estimation.costs import MEASURES_TAKEN, RANK, Costs
from lpc.estimation.pace import Pace
from lpc.estimation.rate import measured_rate
from lpc.estimation.result import Estimate
from lpc.estimation.sizes import Sizes
from lpc.material import Material
from lpc.opening import asked, room_on
from lpc.options import CompressOptions, DataOptions, Short
from lpc.progress import Leg, expect
from lpc.source import load_config
from passes.errors import OptionError
from passes.models import base_model, model_class
from passes.options import CompensateOptions, LoraOptions, RunOptions, Target, TraceOptions, TuneOptions
from passes.pipeline import Program, RunContext, device_named, dtype_named
from passes.trace import trace as traced

logger = logging.getLogger(__name__)

NAMES = {"score": RANK}
"""The stages that are called otherwise than their pass."""
LEAVING = {"hf": "save", "onnx": "export"}
"""The passes that write the formats."""
PROBE_SECONDS = 0.2
"""How long products are timed at the start of a run."""
GIB = 2**30


def estimate(
    model: str | Path,
    ratio: float | None = None,
    *,
    device_bytes: int | None = None,
    flops: float | None = None,
    target: Target | None = None,
    run: RunOptions = RunOptions(),
    lora: LoraOptions = LoraOptions(),
    tune: TuneOptions = TuneOptions(),
    data_options: DataOptions = DataOptions(),
    trace: TraceOptions = TraceOptions(),
    compensate: CompensateOptions | bool | None = None,
    trust_remote_code: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    **short: Unpack[Short],
) -> Estimate:
    """What ``compress`` with these options will cost. ``model``: a folder (its config.json is enough) or a hub name.

    ``device_bytes``: the memory that there is. ``flops``: operations a second that the machine gets through; by default
    one layer of the model and its head are timed here on ``device`` by the ``clock`` (``time.process_time`` where
    others use the machine too), or products of the model's own shapes where that layer is too large for a trial. Raises
    what ``compress`` raises for the model and the options.
    """
    options = asked(
        target, ratio, short, trace, run=run, lora=lora, tune=tune, data_options=data_options, compensate=compensate
    )
    config, device = load_config(model, trust_remote_code=trust_remote_code), device_named(options.run.device)
    graph = traced(config, dtype_named(options.run.dtype), model_type=model_class(config), options=options.trace)
    costs = Costs.of(graph, config, options, on_cpu=device_bytes is None and device.type == "cpu")
    rate = flops or probed(costs.sizes, graph.dtype, device)
    tried = None if flops else Pace.measured(config, costs.sizes, costs.load, graph.dtype, device, clock)
    pace = tried or costs.even(rate)
    method = costs.way(pace)
    return Estimate(
        model=str(model),
        parameters=costs.sizes.parameters,
        kept=costs.kept,
        rate=rate,
        measured=flops is None,
        device_bytes=device_bytes,
        method=method,
        true_gradient=costs.way(pace, true_gradient=True),
        remedy=None if device_bytes is None or method.peak.memory_bytes <= device_bytes else costs.remedy(device_bytes),
    )


def probed(sizes: Sizes, dtype: torch.dtype, device: torch.device, seconds: float = 2.0) -> float:
    """Operations a second that a device gets through in products of a model's own shapes."""
    wide = sizes.channels // max(sizes.layers, 1) or 4 * sizes.hidden
    return measured_rate(sizes.hidden, wide, dtype, device, seconds)


def costs_of(program: Program, material: Material, options: CompressOptions, run: RunContext) -> Costs:
    """The costs of a run that has its model and its data."""
    data, count = options.data_options, len(cast(Sized, material.train))
    heldout = max(1, min(data.heldout_sequences, round(count * data.heldout_fraction / (1 - data.heldout_fraction))))
    context = material.context_length or data.sequence_length
    told = replace(
        options,
        data_options=replace(data, sequence_length=context, heldout_sequences=heldout),
        run=replace(options.run, samples=min(run.samples, count)),
    )
    config = base_model(program.model).config
    return Costs.of(program.traced, config, told, on_cpu=torch.device(run.device).type == "cpu")


def look_ahead(
    program: Program,
    material: Material,
    options: CompressOptions,
    names: Sequence[str],
    run: RunContext,
    export: Iterable[str],
) -> None:
    """Tell the run's progress what is to come, passes of these ``names``, and look whether there is room for it.

    Raises OptionError if there is none, whatever the options.
    """
    costs = costs_of(program, material, options, run)
    device = next(program.model.parameters()).device
    check_room(costs, device, already=costs.sizes.weight_bytes)
    rate = probed(costs.sizes, program.traced.dtype, device, PROBE_SECONDS)
    leaving = [LEAVING[name] for name in export if name in LEAVING]
    expect(run.progress, stages_to_come([*names, *leaving], costs, costs.even(rate)))


def stages_to_come(names: Sequence[str], costs: Costs, pace: Pace) -> list[Leg]:
    """What is to come of passes of these names, at a pace, as their progress will tell it."""
    seconds = {name: costs.seconds(NAMES.get(name, name), pace) for name in names}
    return [Leg(name, seconds[name] / (MEASURES_TAKEN if name == "measure" else 1)) for name in names]


def check_room(costs: Costs, device: torch.device, already: int) -> None:
    """Warn if a run will not fit, with the option to change; raise OptionError if no option helps.

    ``already``: bytes of it that are in memory by now.
    """
    room = room_on(str(device)) + already
    held = costs.memory()
    stage = max(held, key=lambda name: held[name])
    if held[stage] <= room:
        return
    there = f"{stage} will hold about {held[stage] / GIB:.1f} GiB on {device}, and {room / GIB:.1f} GiB are there"
    if costs.least() > room:
        raise OptionError(
            f"{there}; with the least that options allow it is {costs.least() / GIB:.1f} GiB still: take a device with "
            "more memory, or a smaller model"
        )
    remedy = costs.remedy(room)
    logger.warning("%s: %s", there, f"if it fails, try {remedy}" if remedy else "lower --batch-size and --samples both")
