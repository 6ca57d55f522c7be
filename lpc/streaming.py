"""apply_to(): a plan applied from folder to folder, where that can be without a model in memory."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from exporters.files import staged_folder
from exporters.hf import Processor, save_streamed, why_not_streamed
from exporters.registry import Exports, chosen
from exporters.runtimes import compatibility
from lpc.compression import apply
from lpc.owned import output
from lpc.replay import check_adapter_files, plan_and_weights
from lpc.report import Report, write_manifest
from lpc.result import Result
from lpc.source import cast_to, check_not_blank, find_unloaded, load_adapter
from passes.errors import UnsupportedModelError
from passes.graph import Plan
from passes.models import Parity, check_adapter, quiet
from passes.options import AUTO
from passes.pipeline import PassRecord, Program, Progress, RunContext, caller_state_kept, measured, silent
from passes.streaming import Streaming

logger = logging.getLogger(__name__)

NOTE = (
    "applied a tensor at a time: each was held against an independent gather and read back, but no layer was run, and "
    "the checkpoint was not computed with"
)


@caller_state_kept()
def apply_to(
    plan: Plan | str | Path,
    model: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    compensation: str | Path | None = None,
    tokenizer: Processor | None = None,
    device: str | None = None,
    export: Exports = ("hf",),
    trust_remote_code: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Report:
    """Replay a plan from the folder ``model`` into the output ``out``; returns the final report.

    The output is that of ``apply(...).save(out)``, bit for bit. Where the source is a folder of safetensors and only
    the format ``hf`` is asked for, on no device, the checkpoint goes through a tensor at a time, and no model is ever
    in memory (docs/memory.md); else it is loaded. Raises what ``apply`` and ``Result.save`` raise.
    """
    why = _why_loaded(export, device, trust_remote_code)
    if why is None:
        plan, solved = plan_and_weights(plan, compensation, adapter, worn=adapter is not None)
        run = RunContext(progress=progress, dtype=plan.options.get("dtype", AUTO))
        way = _Way(plan=plan, solved=solved, model=model, adapter=adapter, run=run)
        try:
            return way.to(Path(out), tokenizer, force=force)
        except UnsupportedModelError as error:
            why = str(error)
    logger.info("%s is loaded as a whole: %s", model, why)
    given: dict[str, Any] = {"adapter": adapter, "compensation": compensation, "tokenizer": tokenizer, "device": device}
    result = apply(plan, model, **given, export=export, trust_remote_code=trust_remote_code)
    return result.save(out, export=export, force=force, progress=progress)


def _why_loaded(export: Exports, device: str | None, trust_remote_code: bool) -> str | None:
    others = [name for name in chosen(export) if name != "hf"]
    if others:
        return f"the format {others[0]} needs the model"
    if device not in (None, AUTO):
        return f"the device {device} was asked for"
    return "its own code may be run" if trust_remote_code else None


@dataclass(frozen=True, kw_only=True)
class _Way:
    """One plan from one folder to another."""

    plan: Plan
    solved: Mapping[str, torch.Tensor]
    model: str | Path
    adapter: str | Path | None
    run: RunContext

    def to(self, out: Path, tokenizer: Processor | None, *, force: bool) -> Report:
        """Write the output. Raises UnsupportedModelError for what cannot go through a tensor at a time."""
        source, processor = find_unloaded(self.model, tokenizer)
        dense = copy.deepcopy(source.model)
        cast_to(self.run, dense)
        streaming = Streaming(source, dense, self.plan, self._worn(dense), self.solved)
        why = why_not_streamed(streaming.compact)
        if why is not None:
            raise UnsupportedModelError(why)
        with staged_folder(out, force=force, owned=output(), reads=(self.model,)) as stage:
            program = self._through(streaming, processor, stage / "hf")
            name = str(Path(self.model).absolute())
            result = Result.of(program, name, processor, self.run, notes=(NOTE,))
            result.save_artifacts(stage)
            report = replace(result.report, compatibility=compatibility(streaming.compact, program.history))
            write_manifest(stage, {**report.to_json(), "missing": {}, "recipe": None})
        logger.info("wrote %s", out)
        return report

    def _worn(self, dense: PreTrainedModel) -> PeftModel | None:
        """The source, on the meta device, with the values of its adapter."""
        if self.adapter is None:
            return None
        worn = load_adapter(copy.deepcopy(dense), self.adapter)
        check_not_blank(self.adapter)
        check_adapter_files(self.plan, Path(self.adapter))
        check_adapter(worn)
        return worn

    def _through(self, streaming: Streaming, processor: Processor | None, folder: Path) -> Program:
        """Write the checkpoint; returns what has become of the model, with the records of how."""
        total = len(streaming.source.parameters)

        def told() -> Iterator[tuple[str, torch.Tensor]]:
            numbers = count(1)  # enumerate would hold on to what it gave last
            for each in streaming.tensors():
                yield each
                del each
                self.run.progress("apply", min(next(numbers), total), total)

        with quiet(), measured() as measurement:
            save_streamed(streaming.compact, told(), processor, folder)
        program = streaming.program(measurement.peak_memory_bytes)
        wrote = PassRecord(
            name="write",
            options={},
            seconds=measurement.seconds - sum(record.seconds for record in program.history[1:]),
            peak_memory_bytes=measurement.peak_memory_bytes,
            modified=False,
            parity=(Parity("read back", 0.0, 0.0),),
        )
        return replace(program, history=(*program.history, wrote))
