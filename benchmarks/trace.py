"""Seconds and memory to trace an 8B-shaped Llama (32 layers, 4096, 14336, 32 heads on 8) without its weights.

python benchmarks/trace.py
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
from transformers import LlamaConfig

from lpc.report import table
from lpc.versions import versions
from passes.trace import trace

RUNS = 5
OUT = Path(__file__).parent / "out"


def main() -> None:
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    before = psutil.Process().memory_info().rss
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        graph = trace(config)
        seconds.append(time.perf_counter() - start)
    found = {
        "parameters": graph.parameters(),
        "dimensions": len(graph.dimensions),
        "seconds": seconds,
        "grown_bytes": psutil.Process().memory_info().rss - before,
        "versions": versions(),
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "trace.json").write_text(json.dumps(found, indent=1))
    cells = [f"{min(seconds):.2f}", f"{sorted(seconds)[RUNS // 2]:.2f}", f"{max(seconds):.2f}"]
    print(table(["parameters", "min s", "median s", "max s"], [[f"{graph.parameters():,}", *cells]]))


if __name__ == "__main__":
    main()
