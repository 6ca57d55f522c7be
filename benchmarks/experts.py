"""ONNX graphs of mixtures by the number of experts: nodes, size, seconds to export, and milliseconds a call.

    python benchmarks/experts.py [--experts 4 32 128] [--rounds 20]

The model is a random Qwen3-MoE of two layers, of whose experts a token visits two. ``export`` is ``export_onnx`` with
its verification. Calls are the median of so many, one thread, in processor time. Writes benchmarks/results/experts.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import onnx_ir as ir
import torch

from exporters.calls import Graph, OnnxFolder, call_grid
from exporters.latency import processor
from exporters.onnx import export_onnx
from exporters.options import OnnxOptions

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "experts.md"
SIZES = {"hidden_size": 256, "moe_intermediate_size": 128, "num_attention_heads": 4, "head_dim": 64}


def row(experts: int, rounds: int) -> list[str]:
    """What becomes of a model with so many experts, which is of the tests, as its tokenizer is."""
    import zoo
    from conftest import build_tokenizer

    torch.manual_seed(0)
    model = zoo.build("qwen3_moe", num_experts=experts, num_experts_per_tok=2, num_key_value_heads=2, **SIZES)
    with tempfile.TemporaryDirectory(prefix="lpc-experts-") as folder:
        begun = time.process_time()
        package = export_onnx(model, build_tokenizer(), Path(folder), OnnxOptions(greedy_prompts=1))
        seconds = time.process_time() - begun
        nodes = sum(1 for _ in ir.load(Path(folder) / "model.onnx").graph.all_nodes())
        graph = Graph(OnnxFolder.find(Path(folder)), 1)
        times = []
        for call in call_grid((1,), (64,), (64,)):
            feeds, taken = graph.feeds(call), []
            for _ in range(rounds + 1):
                start = time.process_time()
                graph.run(feeds)
                taken.append(1e3 * (time.process_time() - start))
            times.append(f"{call.key}: {median(taken[1:]):.2f} ms")
        worst = max(each.value for each in package.parity)
    cells = [experts, f"{nodes:,}", f"{package.file_bytes / 1e6:.1f} MB", f"{seconds:.1f} s", f"{worst:.0e}"]
    return [str(cell) for cell in (*cells, ", ".join(times))]


def main() -> None:
    """A row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="*", default=[4, 32, 128])
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "tests"))
    head = ["experts", "nodes", "file", "export", "against torch", "a call"]
    rows = [head, ["---:"] * len(head), *(row(experts, asked.rounds) for experts in asked.experts)]
    table = "\n".join("| " + " | ".join(each) + " |" for each in rows)
    RESULTS.write_text(f"One thread of {processor()}:\n\n{table}\n")
    print(table)


if __name__ == "__main__":
    main()
