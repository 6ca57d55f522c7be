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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from statistics import mean, median

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from exporters.latency import LatencyTable, latency_model
from exporters.latency_timing import Sample, seconds_of, steps_of, time_once
from exporters.machine import Machine
from exporters.onnx_calls import OnnxFolder
from exporters.onnx_decoder import build_decoder
from exporters.onnx_graph import GraphBuilder
from exporters.onnx_options import DATA_FILE, MAX_OPSET, MODEL_FILE
from lpc.manifest import versions
from lpc.report import table
from passes.budget import Workload
from passes.compact import build_compact
from passes.graph import PruningGraph
from passes.trace import TraceOptions, trace

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
    builder = GraphBuilder(torch.float32)
    decoder = build_decoder(compact, builder)
    folder.mkdir()
    builder.save(folder / MODEL_FILE, decoder.inputs, decoder.outputs, opset=MAX_OPSET, data_file=DATA_FILE)
    return OnnxFolder.find(folder)


def describe(graph: PruningGraph, counts: Counts) -> str:
    """The counts of every width, one number where all layers agree."""
    widths = (sorted({counts[d.name] for d in graph.of_width(width.name)}) for width in graph.widths)
    return ", ".join(f"{seen[0]}" if len(seen) == 1 else f"{seen[0]} to {seen[-1]}" for seen in widths)


def errors(tables: Sequence[LatencyTable], drawn: dict[str, Counts], measured: dict[str, float]) -> dict[str, float]:
    """Relative error a plan of what the tables predict on average."""
    return {name: mean(each.seconds(kept) for each in tables) / measured[name] - 1 for name, kept in drawn.items()}


def fraction_error(one: LatencyTable, drawn: dict[str, Counts], measured: dict[str, float]) -> float:
    """Worst relative error of what one table predicts as a fraction of dense, which a busy machine blurs less."""
    dense = one.dense_seconds / measured["dense"]
    return max(abs(one.seconds(kept) / measured[name] / dense - 1) for name, kept in drawn.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("batch", "prefill", "decode"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Workload(), name))
    parser.add_argument("--name", default="latency", help="name of the result files")
    arguments = parser.parse_args()
    threads = arguments.threads or os.cpu_count() or 1
    workload = Workload(batch=arguments.batch, prefill=arguments.prefill, decode=arguments.decode)
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES)
    model = LlamaForCausalLM(config).eval()
    graph = trace(config, model_type=LlamaForCausalLM, options=TraceOptions(custom_code=True))
    drawn = plans(graph, Random(arguments.seed))
    steps = steps_of(workload, has_cache=True, takes_images=False)
    samples: dict[str, list[Sample]] = {name: [] for name in drawn}
    tables, loads = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: export_plan(model, graph, kept, Path(scratch) / name) for name, kept in drawn.items()}
        for turn in range(arguments.turns):
            cache = Path(scratch) / f"cache-{turn}"
            tables.append(latency_model(config, graph, workload, threads=threads, cache=cache))
            for name in drawn if turn % 2 == 0 else reversed(drawn):
                samples[name].append(time_once(folders[name], steps, threads))
            loads.append(os.getloadavg()[0])
            print(f"turn {turn + 1} of {arguments.turns}, load {loads[-1]:.1f}", file=sys.stderr)
    measured = {name: seconds_of(each, steps) for name, each in samples.items()}
    found = errors(tables, drawn, measured)
    rows = [
        [
            name,
            describe(graph, kept),
            f"{graph.parameters(kept) / 1e6:.1f}M",
            f"{1000 * measured[name] * (1 + found[name]):.0f}",
            f"{1000 * measured[name]:.0f}",
            f"{100 * found[name]:+.1f} %",
        ]
        for name, kept in drawn.items()
    ]
    sizes = {name: abs(error) for name, error in found.items() if name != "dense"}
    singles = [max(abs(each) for each in errors([one], drawn, measured).values()) for one in tables]
    fractions = [fraction_error(one, drawn, measured) for one in tables]
    where = f"{Machine.here().processor}, {threads} thread(s), load average {min(loads):.1f} to {max(loads):.1f}"
    text = (
        f"{graph.parameters() / 1e6:.1f}M parameters; {workload}; {where}\n\n"
        + table(["plan", "KV groups, channels", "parameters", "predicted ms", "measured ms", "error"], rows)
        + f"\n\nError over {len(sizes)} plans: worst {100 * max(sizes.values()):.1f} %, "
        + f"median {100 * median(sizes.values()):.1f} %. Worst of each single table: "
        + ", ".join(f"{100 * each:.1f} %" for each in singles)
        + "; of the fraction of dense: "
        + ", ".join(f"{100 * each:.1f} %" for each in fractions)
        + ".\n"
    )
    OUT.mkdir(exist_ok=True)
    values = {
        "versions": versions(),
        "machine": asdict(Machine.here()),
        "threads": threads,
        "load_average": loads,
        "workload": asdict(workload),
        "model": SIZES,
        "plans": {
            name: {
                "kept": kept,
                "measured_s": measured[name],
                "measured_s_by_turn": [seconds_of([each], steps) for each in samples[name]],
                "predicted_s_by_turn": [each.seconds(kept) for each in tables],
                "error": found[name],
            }
            for name, kept in drawn.items()
        },
        "tables": [
            {"constant_s": each.constant, "curves": {name: asdict(curve) for name, curve in each.curves.items()}}
            for each in tables
        ],
        "worst_error": max(sizes.values()),
        "median_error": median(sizes.values()),
        "worst_error_single_table": singles,
        "worst_error_single_table_fraction_of_dense": fractions,
    }
    (OUT / f"{arguments.name}.json").write_text(json.dumps(values, indent=1) + "\n")
    (OUT / f"{arguments.name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
