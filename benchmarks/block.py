"""Pruned-to-half against dense in onnxruntime: four layers of Llama-3.1-8B's widths, random weights, fp32.

    python benchmarks/block.py [--threads N] [--loads N] [--name NAME]

The issue asks for a time ratio of at most 1.04 x the parameter ratio, and what it costs to round no widths. Dense and
one pruned model are in memory together and their runs alternate; each ratio is of neighbouring runs, so that what slows
the machine for a while slows both. Both are loaded anew several times, each first in turn: a decode step reads all
weights once, and how fast that goes depends on the pages that they happen to get. Needs 8 GB of memory, 6 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from exporters.calls import Call, Graph, OnnxFolder, call_grid
from exporters.files import MODEL_FILE
from exporters.latency.machine import Machine
from exporters.onnx import DATA_FILE, GraphBuilder, build_decoder
from exporters.options import MAX_OPSET
from lpc.report import table
from lpc.versions import versions
from passes.budget import Solver
from passes.graph import PruningGraph
from passes.models import stock_class
from passes.options import Target
from passes.shrink import compact_config
from passes.trace import trace

OUT = Path(__file__).parent / "out"
LIMIT = 1.04
RATIO = 0.5
SPREAD = 0.02
SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 4,
    "vocab_size": 256,
    "tie_word_embeddings": True,
}
PAIRS = {"prefill": 1, "decode": 8}
"""Pruned runs of a call each time that the models are loaded."""

LONG = 512
"""A prefill of so many tokens takes ten seconds; reading the weights does not count there, and one loading will do."""

CALLS = (*call_grid((1,), (), (128, 1024)), *call_grid((8,), (), (128,)), *call_grid((1,), (128, LONG), ()))
HEADER = ["MLP widths", "KV groups, channels", "call", "dense ms", "pruned ms", "time ratio (quartiles)"]
HEADER += ["parameter ratio", "quotient", f"at most {LIMIT}"]

Counts = dict[str, int]


@dataclass(frozen=True)
class Pair:
    """Seconds of a pruned run, and the mean of the dense ones before and after it."""

    dense: float
    pruned: float


def variants(graph: PruningGraph) -> dict[str, Counts]:
    """The solver's counts a width for half of the parameters, by the rounding of MLP widths; and an odd width."""

    def counts(multiple: int | None) -> Counts:
        return Solver.of(Target(ratio=RATIO, multiple=multiple), graph).uniform_counts

    free = counts(1)
    odd = {**free, "mlp_channels": free["mlp_channels"] - (free["mlp_channels"] % 2 == 0)}
    return {"multiple of 64 (default)": counts(None), "not rounded": free, "odd": odd}


def random_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A model whose weights all differ: onnxruntime keeps equal ones once."""
    torch.manual_seed(seed)
    with no_init_weights():
        model = cast(Any, stock_class(LlamaForCausalLM, config))._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, SPREAD)
    model.tie_weights()
    return cast(PreTrainedModel, model.eval())


def write(config: PreTrainedConfig, seed: int, folder: Path) -> OnnxFolder:
    """The ONNX model of a configuration, with random weights beside it."""
    builder = GraphBuilder()
    decoder = build_decoder(random_model(config, seed), builder)
    folder.mkdir()
    builder.save(folder / MODEL_FILE, decoder.inputs, decoder.outputs, opset=MAX_OPSET, data_file=DATA_FILE)
    return OnnxFolder.find(folder)


def compared(dense: Graph, pruned: Graph, call: Call, threads: int) -> list[Pair]:
    """Alternating runs, dense first and last. The clock is this thread's processor time where it is the only one."""
    clock, graphs = time.thread_time if threads == 1 else time.perf_counter, (dense, pruned)
    feeds = [graph.feeds(call) for graph in graphs]
    for graph, values in zip(graphs, feeds, strict=True):
        if call.tokens < LONG:
            graph.run(values)
    seconds: list[float] = []
    for turn in range(2 * (PAIRS[call.phase] + (call.tokens == LONG)) + 1):
        start = clock()
        graphs[turn % 2].run(feeds[turn % 2])
        seconds.append(clock() - start)
    return [Pair((a + b) / 2, p) for a, p, b in zip(seconds[::2], seconds[1::2], seconds[2::2], strict=False)]


def block_parameters(graph: PruningGraph, counts: Counts) -> int:
    """Parameters of the layers alone, without embedding, head and last norm."""
    kept = {d.name: counts.get(d.width, d.size) for d in graph.dimensions}
    return sum(graph.numel(name, kept) for name in graph.shapes if name.startswith("model.layers."))


def result(graph: PruningGraph, counts: Counts, call: Call, loads: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    """The numbers of one call of one pruned model, over all loadings."""
    parameters = block_parameters(graph, counts) / block_parameters(graph, {})
    pairs = [pair for load in loads for pair in load]
    low, middle, high = quantiles([pair.pruned / pair.dense for pair in pairs], n=4)
    return {
        "call": call.key,
        "dense_s": median(pair.dense for pair in pairs),
        "pruned_s": median(pair.pruned for pair in pairs),
        "ratio": middle,
        "quartiles": [low, high],
        "ratio_by_loading": [median(pair.pruned / pair.dense for pair in load) for load in loads],
        "parameter_ratio": parameters,
        "quotient": middle / parameters,
        "within_limit": middle / parameters <= LIMIT,
        "pairs_s": [[asdict(pair) for pair in load] for load in loads],
    }


def rows(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The table's rows, a pruned model and call each."""
    return [
        [
            name,
            f"{variant['counts']['kv_groups']}, {variant['counts']['mlp_channels']}",
            each["call"],
            f"{1000 * each['dense_s']:.0f}",
            f"{1000 * each['pruned_s']:.0f}",
            f"{each['ratio']:.3f} ({each['quartiles'][0]:.3f} to {each['quartiles'][1]:.3f})",
            f"{each['parameter_ratio']:.4f}",
            f"{each['quotient']:.3f}",
            "yes" if each["within_limit"] else "no",
        ]
        for name, variant in found.items()
        for each in variant["calls"]
    ]


def measure(folders: tuple[OnnxFolder, OnnxFolder], threads: int, loads: int) -> dict[Call, list[list[Pair]]]:
    """Every call of dense and of a pruned model, a list of pairs a loading."""
    found: dict[Call, list[list[Pair]]] = {call: [] for call in CALLS}
    for turn in range(loads):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        graphs = {which: Graph(folders[which], threads) for which in order}
        for call in CALLS:
            if call.tokens < LONG or turn == 0:
                found[call].append(compared(graphs[0], graphs[1], call, threads))
        del graphs
    return found


def document(graph: PruningGraph, found: dict[str, dict[str, Any]], threads: int, loads: Sequence[float]) -> str:
    """The Markdown page."""
    clock = "processor time of the one thread" if threads == 1 else "wall time"
    return (
        f"Four layers of Llama-3.1-8B's widths, fp32, random weights: {block_parameters(graph, {}) / 1e6:.1f}M "
        f"parameters in the layers (embedding and head, tied, of {SIZES['vocab_size']} tokens: not counted, "
        f"{100 * (1 - block_parameters(graph, {}) / graph.parameters()):.2f} % of all). "
        f"{Machine.here().processor}, {threads} thread(s), {clock}, load average {loads[0]:.1f} to {loads[-1]:.1f}. "
        "A call is phase, batch b, tokens t, past p. Scores and softmax of attention grow with the context and shrink "
        "with the kept heads; norms and residual sums do not shrink.\n\n" + table(HEADER, rows(found)) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--loads", type=int, default=4)
    parser.add_argument("--name", default="block", help="name of the result files")
    arguments = parser.parse_args()
    config, threads, loads = LlamaConfig(**SIZES), arguments.threads, [os.getloadavg()[0]]
    graph = trace(config)
    found: dict[str, dict[str, Any]] = {}
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lpc-block-") as scratch:
        dense = write(config, 0, Path(scratch) / "dense")
        for seed, (name, counts) in enumerate(variants(graph).items(), start=1):
            folder = Path(scratch) / f"pruned-{seed}"
            pruned = write(compact_config(config, graph, counts), seed, folder)
            seen = measure((dense, pruned), threads, arguments.loads)
            found[name] = {"counts": counts, "calls": [result(graph, counts, *each) for each in seen.items()]}
            shutil.rmtree(folder)
            loads.append(os.getloadavg()[0])
            save(arguments.name, graph, found, threads, loads)
            print(table(HEADER, rows({name: found[name]})), file=sys.stderr)
    print((OUT / f"{arguments.name}.md").read_text())


def save(
    name: str, graph: PruningGraph, found: dict[str, dict[str, Any]], threads: int, loads: Sequence[float]
) -> None:
    """Write the files with what was measured so far."""
    values = {
        "versions": versions(),
        "machine": asdict(Machine.here()),
        "threads": threads,
        "load_average": loads,
        "model": SIZES,
        "limit": LIMIT,
        "variants": found,
    }
    (OUT / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")
    (OUT / f"{name}.md").write_text(document(graph, found, threads, sorted(loads)))


if __name__ == "__main__":
    main()
