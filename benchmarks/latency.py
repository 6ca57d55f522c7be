"""Predicted against measured latency: 20 random plans on a Llama of 64M parameters with random weights.

    python benchmarks/latency.py [--threads N] [--turns N] [--prefill N] [--decode N] [--batch N]

Each turn makes a new table and then loads and times every plan once, so that what slows the machine for a while slows
both. The prediction is the mean of the turns' tables, the truth the median of all runs; what a single table, the one
that a user has, would have predicted is in the last lines.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from statistics import mean, median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from exporters.calls import OnnxFolder
from exporters.files import MODEL_FILE
from exporters.latency import latency_model
from exporters.latency.machine import Machine
from exporters.latency.table import LatencyTable
from exporters.latency.timing import Sample, WorkloadStep, seconds_of, steps_of, time_once
from exporters.onnx import DATA_FILE, GraphBuilder, build_decoder, why_not_group_query
from exporters.options import MAX_OPSET
from lpc.report import table
from lpc.versions import versions
from passes.graph import PruningGraph
from passes.options import TraceOptions, Workload
from passes.shrink import build_compact
from passes.trace import trace

OUT = Path(__file__).parent / "out"
UNIFORM, PER_LAYER = 6, 14
MULTIPLE = 64
SIZES = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 64,
    "num_hidden_layers": 8,
    "vocab_size": 8192,
    "tie_word_embeddings": False,
}

Counts = dict[str, int]


def plans(graph: PruningGraph, random: Random) -> dict[str, Counts]:
    """The dense model and random plans: kept counts a dimension."""
    drawn = {"dense": {d.name: d.size for d in graph.dimensions}}
    for number in range(UNIFORM):
        widths = {width.name: draw(width.size, random) for width in graph.widths}
        drawn[f"uniform {number + 1}"] = {d.name: widths[d.width] for d in graph.dimensions}
    for number in range(PER_LAYER):
        drawn[f"per-layer {number + 1}"] = {d.name: draw(d.size, random) for d in graph.dimensions}
    return drawn


def draw(size: int, random: Random) -> int:
    """A kept count: of many units a multiple."""
    step = MULTIPLE if size > MULTIPLE else 1
    return step * random.randint(1, size // step)


def export_plan(model: LlamaForCausalLM, graph: PruningGraph, counts: Counts, folder: Path) -> OnnxFolder:
    """The ONNX model of a plan; which units stay does not matter to the time."""
    compact = build_compact(model, graph, {name: range(count) for name, count in counts.items()})
    builder = GraphBuilder()
    decoder = build_decoder(compact, builder, group_query=why_not_group_query(compact) is None)
    folder.mkdir()
    builder.save(folder / MODEL_FILE, decoder.inputs, decoder.outputs, opset=MAX_OPSET, data_file=DATA_FILE)
    return OnnxFolder.find(folder)


def describe(graph: PruningGraph, counts: Counts) -> str:
    """The counts of every width, one number where all layers agree."""
    widths = (sorted({counts[d.name] for d in graph.of_width(width.name)}) for width in graph.widths)
    return ", ".join(f"{seen[0]}" if len(seen) == 1 else f"{seen[0]} to {seen[-1]}" for seen in widths)


@dataclass(frozen=True)
class Run:
    """What was drawn and taken: kept counts and samples by plan, and a table and a load average each turn."""

    graph: PruningGraph
    workload: Workload
    threads: int
    steps: Sequence[WorkloadStep]
    drawn: Mapping[str, Counts]
    samples: Mapping[str, Sequence[Sample]]
    tables: Sequence[LatencyTable]
    loads: Sequence[float]

    @cached_property
    def measured(self) -> dict[str, float]:
        """Seconds of the workload by plan."""
        return {name: seconds_of(each, self.steps) for name, each in self.samples.items()}

    def errors(self, tables: Sequence[LatencyTable]) -> dict[str, float]:
        """Relative error a plan of what the tables predict on average."""
        predicted = {name: mean(each.seconds(kept) for each in tables) for name, kept in self.drawn.items()}
        return {name: seconds / self.measured[name] - 1 for name, seconds in predicted.items()}

    def fraction_error(self, one: LatencyTable) -> float:
        """Worst relative error of what one table predicts as a fraction of dense, which a busy machine blurs less."""
        dense = one.dense_seconds / self.measured["dense"]
        return max(abs(one.seconds(kept) / self.measured[name] / dense - 1) for name, kept in self.drawn.items())

    @cached_property
    def found(self) -> dict[str, float]:
        """The errors of all tables together."""
        return self.errors(self.tables)

    @cached_property
    def sizes(self) -> list[float]:
        """The sizes of the errors, that of the dense model left out."""
        return [abs(error) for name, error in self.found.items() if name != "dense"]

    @cached_property
    def singles(self) -> list[float]:
        """The worst error of each single table."""
        return [max(abs(each) for each in self.errors([one]).values()) for one in self.tables]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("batch", "prefill", "decode"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Workload(), name))
    parser.add_argument("--name", default="latency", help="name of the result files")
    arguments = parser.parse_args()
    workload = Workload(batch=arguments.batch, prefill=arguments.prefill, decode=arguments.decode)
    run = measure(workload, arguments.threads, arguments.turns, arguments.seed)
    OUT.mkdir(exist_ok=True)
    (OUT / f"{arguments.name}.json").write_text(json.dumps(values(run), indent=1) + "\n")
    (OUT / f"{arguments.name}.md").write_text(page(run))
    print(page(run))


def measure(workload: Workload, threads: int, turns: int, seed: int) -> Run:
    """Draw the plans, and in each turn make a table and time every plan."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES)
    model = LlamaForCausalLM(config).eval()
    graph = trace(config, model_type=LlamaForCausalLM, options=TraceOptions(custom_code=True))
    drawn = plans(graph, Random(seed))
    steps = steps_of(workload, has_cache=True, takes_images=False)
    samples: dict[str, list[Sample]] = {name: [] for name in drawn}
    tables, loads = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: export_plan(model, graph, kept, Path(scratch) / name) for name, kept in drawn.items()}
        for turn in range(turns):
            cache = Path(scratch) / f"cache-{turn}"
            tables.append(latency_model(config, graph, workload, threads=threads, cache=cache))
            for name in drawn if turn % 2 == 0 else reversed(drawn):
                samples[name].append(time_once(folders[name], steps, threads))
            loads.append(os.getloadavg()[0])
            print(f"turn {turn + 1} of {turns}, load {loads[-1]:.1f}", file=sys.stderr)
    return Run(graph, workload, threads, steps, drawn, samples, tables, loads)


def page(run: Run) -> str:
    """The table for people."""
    graph = run.graph
    rows = [
        [
            name,
            describe(graph, kept),
            f"{graph.parameters(kept) / 1e6:.1f}M",
            f"{1000 * run.measured[name] * (1 + run.found[name]):.0f}",
            f"{1000 * run.measured[name]:.0f}",
            f"{100 * run.found[name]:+.1f} %",
        ]
        for name, kept in run.drawn.items()
    ]
    where = f"{Machine.here().processor}, {run.threads} thread(s), "
    where += f"load average {min(run.loads):.1f} to {max(run.loads):.1f}"
    return (
        f"{graph.parameters() / 1e6:.1f}M parameters; {run.workload}; {where}\n\n"
        + table(["plan", "KV groups, channels", "parameters", "predicted ms", "measured ms", "error"], rows)
        + f"\n\nError over {len(run.sizes)} plans: worst {100 * max(run.sizes):.1f} %, "
        + f"median {100 * median(run.sizes):.1f} %. Worst of each single table: "
        + ", ".join(f"{100 * each:.1f} %" for each in run.singles)
        + "; of the fraction of dense: "
        + ", ".join(f"{100 * run.fraction_error(each):.1f} %" for each in run.tables)
        + ".\n"
    )


def values(run: Run) -> dict[str, Any]:
    """The numbers for programs."""
    plans = {
        name: {
            "kept": kept,
            "measured_s": run.measured[name],
            "measured_s_by_turn": [seconds_of([each], run.steps) for each in run.samples[name]],
            "predicted_s_by_turn": [each.seconds(kept) for each in run.tables],
            "error": run.found[name],
        }
        for name, kept in run.drawn.items()
    }
    tables = [
        {"constant_s": each.constant, "curves": {name: asdict(curve) for name, curve in each.curves.items()}}
        for each in run.tables
    ]
    return {
        "versions": versions(),
        "machine": asdict(Machine.here()),
        "threads": run.threads,
        "load_average": run.loads,
        "workload": asdict(run.workload),
        "model": SIZES,
        "plans": plans,
        "tables": tables,
        "worst_error": max(run.sizes),
        "median_error": median(run.sizes),
        "worst_error_single_table": run.singles,
        "worst_error_single_table_fraction_of_dense": [run.fraction_error(each) for each in run.tables],
    }


if __name__ == "__main__":
    main()
