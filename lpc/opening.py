"""How a run begins: its options in one value, its model loaded and traced, its folder opened."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from exporters.hf import Processor
from exporters.onnx import PRECISIONS
from exporters.options import OnnxOptions
from exporters.registry import Exports, check_exports, chosen
from lpc.material import AnyData, Material, prepare
from lpc.measuring import measures_of
from lpc.options import CompressOptions, Short, check_kinds, check_short, target_from, with_short
from lpc.progress import logged
from lpc.recipe import Recipe
from lpc.run_folder import RunFolder, running
from lpc.source import ModelLike, Source, load_source
from passes.errors import OptionError
from passes.models import base_model
from passes.options import AUTO, Layout, Target, TraceOptions, check_loggers
from passes.pipeline import PassRecord, Pipeline, Program, Progress, RunContext, measured, silent
from passes.ranks import join, rank, together
from passes.trace import TracePass

logger = logging.getLogger(__name__)

LOAD = "load"
"""What loading is called among the passes."""


def asked(
    target: Target | None, ratio: float | None, short: Short, trace: TraceOptions, **more: Any
) -> CompressOptions:
    """All options of a run, with what the short forms say of them; ``more`` are fields of ``CompressOptions``.

    Raises OptionError.
    """
    check_short(short)
    check_kinds({**more, "target": target, "trace": trace})
    target = target_from(target, ratio, short)
    trace = replace(trace, custom_code=trace.custom_code or target.layout is Layout.PER_LAYER)
    owners = {name: with_short(more.pop(name), short) for name in ("run", "tune", "data_options")}
    samples = owners["data_options"].samples
    if samples is not None:
        if short.get("samples") is None:
            owners["run"] = replace(owners["run"], samples=samples)
        owners["data_options"] = replace(owners["data_options"], samples=None)
    return CompressOptions(target=target, trace=trace, **owners, **more)


def in_whole_blocks(options: CompressOptions, export: Exports) -> CompressOptions:
    """The options with widths that are multiples of the blocks in which a precision stores weights, if one does.

    A ``multiple`` that was said stays. Raises OptionError for a format that there is not.
    """
    onnx = onnx_in(export) if options.target.multiple is None else None
    if onnx is None or not any(PRECISIONS.named(name).blocks for name in onnx.precision if name != AUTO):
        return options
    return replace(options, target=replace(options.target, multiple=onnx.block))


def onnx_in(export: Exports) -> OnnxOptions | None:
    """The options of the first format that is made of ONNX graphs, or None. Raises OptionError as ``chosen`` does."""
    named = tuple(export) if not isinstance(export, Mapping) else export
    return next((each for each in chosen(named).values() if isinstance(each, OnnxOptions)), None) if named else None


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where a run keeps what it has done, if anywhere, and whether it must (or must not) go on with what is there."""

    folder: RunFolder | None
    resume: bool | None

    @classmethod
    def of(
        cls, options: CompressOptions, run_folder: str | Path | RunFolder | None, resume: bool | None
    ) -> tuple[Keeping, CompressOptions]:
        """As a run's own arguments say, or else its options of tuning, which then say nothing of it any more.

        Raises OptionError if something is to be kept or gone on with, and there is no folder.
        """
        tune = options.tune
        named = tune.checkpoints if run_folder is None else run_folder
        resume = True if tune.resume and resume is None else resume
        replace(tune, resume=bool(resume)).check_checkpoints(Path() if named is not None else None)
        folder = RunFolder.of(named) if named is not None else None
        return cls(folder=folder, resume=resume), replace(options, tune=replace(tune, checkpoints=None, resume=False))

    def recipe(
        self,
        program: Program,
        processor: Processor | None,
        material: Material,
        options: CompressOptions,
        passes: Pipeline,
        run: RunContext,
    ) -> Recipe | None:
        """What the run is made of; None if it keeps nothing."""
        if self.folder is None:
            return None
        return Recipe.of(program, processor, material, options.data_options, passes, run)

    def running(self, recipe: Recipe | None) -> AbstractContextManager[Path | None]:
        """A context in which the run is at work in its folder, whose path it gives; see ``lpc.run_folder.running``."""
        return running(self.folder, recipe, self.resume)


def opened(
    model: ModelLike, tokenizer: Processor | None, options: CompressOptions, export: Exports, progress: Progress
) -> tuple[Source, Program, RunContext]:
    """The model that a run begins with, also traced, and the context of the run, which all its processes have joined.

    Raises OptionError for a device that is not there or a log that cannot be written, and what loading, tracing or one
    of the formats refuses.
    """
    check_loggers(options.tune.report_to)
    run = RunContext.of(options.run, logged() if progress is silent else progress)
    join(torch.device(run.device))
    run = replace(run, progress=silent) if rank() else run
    with together():
        check_loads(model, run, options.load_in)
        run.progress(LOAD, 0, 1)
        with measured() as loading:
            source = load_source(
                model, tokenizer, trust_remote_code=options.trust_remote_code, run=run, load_in=options.load_in
            )
            check_leaving(source, export)
            program = Program.start(source.model)
        run.progress(LOAD, 1, 1)
        seconds, peak = loading.seconds, loading.peak_memory_bytes
        record = PassRecord(name=LOAD, options={}, seconds=seconds, peak_memory_bytes=peak, modified=False)
        return source, TracePass(options.trace)(replace(program, history=(record,)), run).program, run


def on_data(
    source: Source, data: AnyData | None, options: CompressOptions, run: RunContext
) -> tuple[Material, CompressOptions, RunContext]:
    """What a run is made on, its options with what this settles of them, and the context that batches and measures it.

    Says in the log what it is made on and how far it goes where no data were given. Raises what ``prepare`` raises.
    """
    material = prepare(source, data, options.data_options, options.rows_read)
    if data is None:
        ratio = options.target.ratio
        goes = f"ratio {ratio} of the parameters goes" if ratio is not None else "the budget is as given"
        logger.warning("%s; %s", material.notes[0], goes)
    run = replace(run, collate=material.collate, heldout=measures_of(material.measure))
    return material, replace(options, data_options=material.options), run


def check_loads(model: ModelLike, run: RunContext, load_in: str | None = None) -> None:
    """Raise OptionError if the weights of a folder are more than the memory that is free where they are to lie.

    Nothing is said of weights that are packed when they are loaded (``load_in``).
    """
    if load_in is not None or not isinstance(model, str | Path) or not Path(model).is_dir():
        return
    weights, room = sum(path.stat().st_size for path in Path(model).glob("*.safetensors")), room_on(run.device)
    if weights > room:
        raise OptionError(
            f"{model} holds {weights / 2**30:.1f} GiB of weights, and {room / 2**30:.1f} GiB are free on {run.device}: "
            "take a device with more memory (lpc estimate says how much)"
        )


def room_on(device: str) -> int:
    """Bytes that are free on a device."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(torch.device(device))
        return int(free)
    return int(psutil.virtual_memory().available)


def check_leaving(source: Source, export: Exports) -> None:
    """Raise what one of the formats refuses the model for, if any are named."""
    named = export if isinstance(export, Mapping) else tuple(export)
    if named:
        check_exports(named, base_model(source.model), source.processor)
