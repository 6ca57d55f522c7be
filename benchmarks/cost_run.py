"""What a whole run of ``lpc compress`` costs on a model folder, stage by stage; see ``cost.py``."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

import lpc
from exporters.options import DEFAULT_EXPORTS
from lpc.report import table

STAGES = {"score": "rank", "compensate": "compensate", "tune": "tune"}
DEFAULT_STEPS = 20


class Clock:
    """A Progress that keeps the processor seconds of each pass, in order."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self.passes: list[tuple[str, float]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Look at the time where a pass begins (0 of 1) and ends (1 of 1)."""
        if (done, total) == (0, 1):
            self._began[stage] = time.process_time()
        elif (done, total) == (1, 1) and stage in self._began:
            self.passes.append((stage, time.process_time() - self._began.pop(stage)))

    def seconds(self, stage: str) -> float:
        """Processor seconds of the passes of that name."""
        return sum(seconds for name, seconds in self.passes if name == stage)


def run_model(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, processor seconds and peak memory of one run, as ``lpc compress`` does it, saving included."""
    steps = DEFAULT_STEPS if arguments.steps is None else arguments.steps
    options = {
        "steps": steps,
        "batch_size": arguments.batch,
        "samples": arguments.samples,
        "sequence_length": arguments.context,
    }
    said = lpc.estimate(arguments.model, arguments.ratio, clock=time.process_time, **options)
    clock, start, before = Clock(), time.perf_counter(), time.process_time()
    libraries = psutil.Process().memory_info().rss
    result = lpc.compress(arguments.model, arguments.data, arguments.ratio, progress=clock, **options)
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "out", export=DEFAULT_EXPORTS if arguments.onnx else ["hf"])
    found: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "processor": time.process_time() - before,
        "libraries": libraries,
        "said": {each.name: [each.seconds, each.memory_bytes] for each in said.method.stages},
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": torch.get_num_threads(),
        "stages": {},
        "heldout": {name: [m.dense, m.removed, m.pruned] for name, m in result.report.heldout.measures.items()}
        if result.report.heldout
        else {},
    }
    found["passes"] = [
        {"name": each.name, "seconds": each.seconds, "bytes": each.peak_memory_bytes} for each in result.program.history
    ]
    found["processor_by_pass"] = clock.passes
    for record in result.program.history:
        if record.name in STAGES:
            found["stages"][STAGES[record.name]] = {
                "seconds": record.seconds,
                "processor": clock.seconds(record.name),
                "bytes": record.peak_memory_bytes,
            }
    return found


def model_page(found: Mapping[str, Any], arguments: argparse.Namespace) -> str:
    """A line a stage, and one for the whole run."""
    stages: Mapping[str, Mapping[str, float]] = found["stages"]
    lines = [_line(name, stage) for name, stage in stages.items()]
    both = {
        key: sum(stages[name][key] for name in ("rank", "compensate") if name in stages)
        for key in ("seconds", "processor")
    }
    if "tune" in stages and len(stages) > 1:
        lines.append(
            [
                "rank + compensate, of tuning",
                *(f"{both[key] / stages['tune'][key]:.2f}" for key in ("seconds", "processor")),
                "",
            ]
        )
    lines.append(_line("whole run, saving included", found))
    steps = DEFAULT_STEPS if arguments.steps is None else arguments.steps
    head = (
        f"{Path(arguments.model).name}, ratio {arguments.ratio}, {steps} steps of {arguments.batch} × "
        f"{arguments.context}, {arguments.samples} sequences ranked, {found['threads']} threads; held out (dense, "
        f"removed, compact): {found['heldout']}"
    )
    measured = table(["stage", "seconds", "processor seconds", "peak GiB"], lines)
    return f"{head}\n\n{measured}\n{estimate_page(found)}\n"


def estimate_page(found: Mapping[str, Any]) -> str:
    """What ``lpc estimate`` said before, a line a stage; its peaks with the libraries that it does not count."""
    processor: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for name, seconds in found["processor_by_pass"]:
        processor[STAGES.get(name, name)] = processor.get(STAGES.get(name, name), 0.0) + seconds
    for record in found["passes"]:
        name = STAGES.get(record["name"], record["name"])
        peaks[name] = max(peaks.get(name, 0.0), record["bytes"])
    lines = []
    for name, (seconds, size) in found["said"].items():
        if name in processor and name in peaks:
            took, peak = processor[name], peaks[name]
            both = f"{seconds:.1f}", f"{took:.1f}", f"{seconds / max(took, 1e-9):.2f}"
            held = (size + found["libraries"]) / 2**30, peak / 2**30
            lines.append([name, *both, *(f"{each:.2f}" for each in held), f"{held[0] / held[1]:.2f}"])
    head = ["stage", "said, processor s", "measured", "ratio", "said, peak GiB", "measured", "ratio"]
    return f"\nWhat `lpc estimate` said before it, on this machine:\n\n{table(head, lines)}"


def _line(name: str, values: Mapping[str, float]) -> list[str]:
    return [name, f"{values['seconds']:.1f}", f"{values['processor']:.1f}", f"{values['bytes'] / 2**30:.2f}"]
