"""Load time and peak memory of one model, in a process of its own.

``python -m exporters.calls.probe FOLDER THREADS BATCH TOKENS PROVIDER``

Prints one JSON object: seconds to load, peak resident bytes of the process after loading and after one prefill of
that size, and the resident bytes before anything was loaded.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil

from exporters.calls.calls import Call, Graph, OnnxFolder

PROC_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Largest resident size of this process so far (on Linux VmHWM: ru_maxrss may be the parent's)."""
    if PROC_STATUS.exists():
        for line in PROC_STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def main(folder: str, threads: str, batch: str, tokens: str, provider: str) -> None:
    """Measure and print."""
    found_folder = OnnxFolder.find(Path(folder))
    before = int(psutil.Process().memory_info().rss)
    start = time.perf_counter()
    graph = Graph(found_folder, int(threads), provider)
    load_seconds = time.perf_counter() - start
    loaded = peak_bytes()
    graph.ready(Call(phase="forward", batch=int(batch), tokens=int(tokens), past=0))()
    found = {
        "load_s": load_seconds,
        "baseline_bytes": before,
        "peak_loaded_bytes": loaded,
        "peak_memory_bytes": peak_bytes(),
        "kv_bytes_per_token": graph.kv_bytes_per_token,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
