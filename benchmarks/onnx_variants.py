"""How fast ONNX decoder folders run, as ratios to a first one (below 1 is faster).

``python benchmarks/onnx_variants.py BASE FOLDER [FOLDER ...] [--rounds 15] [--threads 1]``

Runs take turns, and a ratio is the median over the turns. With one thread the processor time of this process is
compared, which other work on the machine disturbs little; with more threads it is wall-clock time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from exporters.calls import Call, Graph, OnnxFolder

CALLS = [
    Call(phase="prefill", batch=1, tokens=128, past=0),
    Call(phase="prefill", batch=1, tokens=512, past=0),
    Call(phase="decode", batch=1, tokens=1, past=128),
    Call(phase="decode", batch=1, tokens=1, past=1024),
    Call(phase="decode", batch=8, tokens=1, past=128),
]


def compare(base: Graph, other: Graph, call: Call, rounds: int, *, one_thread: bool) -> float:
    """Median over the rounds of the other's time over the base's."""
    clock = time.process_time if one_thread else time.perf_counter
    pairs = [(decoder, decoder.feeds(call)) for decoder in (other, base)]
    ratios = []
    for turn in range(rounds + 1):
        seconds = []
        for decoder, feeds in pairs:
            start = clock()
            decoder.run(feeds)
            seconds.append(clock() - start)
        if turn:
            ratios.append(seconds[0] / seconds[1])
    return float(np.median(ratios))


def main() -> None:
    """Print one line a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    base = Graph(OnnxFolder.find(arguments.folders[0]), arguments.threads)
    for folder in arguments.folders:
        other = Graph(OnnxFolder.find(folder), arguments.threads)
        cells = []
        for call in CALLS:
            rounds = arguments.rounds * (4 if call.phase == "decode" else 1)
            ratio = compare(base, other, call, rounds, one_thread=arguments.threads == 1)
            cells.append(f"{call.key} {ratio:.2f}")
        print(f"{folder}: " + ", ".join(cells), flush=True)


if __name__ == "__main__":
    main()
