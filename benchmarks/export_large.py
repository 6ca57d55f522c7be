"""Peak memory, time and bytes of ``lpc export`` on a model of random weights whose shape is that of a large one.

    python benchmarks/export_large.py --shape 8b [--precision int4] [--streamed yes|no] [--work DIR]

The sharded bf16 checkpoint is made a shard at a time in a scratch folder of ``--work``, and removed again with the
package. The command runs in a process of its own, whose peak is the kernel's (VmHWM): pages of mapped files, which
the kernel takes back when it needs them, count too. A run is a row of benchmarks/results/export-large.json; the rows
that are there of other runs stay. Prints the table, and writes it beside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from apply_sharded import fill, size_of
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from exporters.latency import processor
from lpc.report import table
from passes.models import Fingerprint, count_parameters, twin_of

RESULTS = Path(__file__).parent / "results"
TOKENIZER = Path(os.environ.get("LPC_MODELS", "../shared/models")) / "wikitext-llama"
LLAMA = {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "num_attention_heads": 32}
SHAPES: dict[str, dict[str, int | bool]] = {
    "tiny": {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "tie_word_embeddings": False},
}
"""Those of Llama 3.2 1B (a tied embedding) and Llama 3 8B."""

EXPORT = """
import json, sys, time
began = time.perf_counter()
import psutil, torch, transformers, lpc, lpc.exporting
from exporters.options import OnnxOptions
imported, spent = time.perf_counter(), time.process_time()
before = psutil.Process().memory_info().rss
source, out, precision, streamed = sys.argv[1:]
found = lpc.export(source, out, OnnxOptions(precision=(precision,)), streamed=streamed, force=True)
values = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "seconds": time.perf_counter() - imported, "processor": time.process_time() - spent, "before": before,
    "peak": int(values["VmHWM"].split()[0]) * 1024, "bytes": found.file_bytes, "parameters": found.parameters,
    "parity": {each.name: each.value for each in found.parity},
}))
"""


def main() -> None:
    """Make, export, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--streamed", choices=("yes", "no"), default="yes")
    parser.add_argument("--shard", default="2GB")
    parser.add_argument("--work", help="where to make it (default: the system's temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        source = Path(work) / "model"
        made(source, SHAPES[given.shape], size_of(given.shard))
        held = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        row = {"shape": given.shape, "precision": given.precision, "streamed": given.streamed, "source": held}
        row |= measured(source, Path(work) / "onnx", given.precision, given.streamed)
    write(row)


def made(folder: Path, shape: dict[str, int | bool], shard: int) -> None:
    """Write the checkpoint, a shard at a time, and a tokenizer beside it."""
    config = LlamaConfig(**LLAMA, **shape)
    folder.mkdir(parents=True)
    twin = twin_of(LlamaForCausalLM, config).to(torch.bfloat16)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    fill(folder, twin, shard, Fingerprint(config))
    print(f"{count_parameters(twin) / 1e9:.2f} billion parameters in {folder}", flush=True)


def measured(source: Path, out: Path, precision: str, streamed: str) -> dict[str, Any]:
    """One export, in a process of its own."""
    load = os.getloadavg()[0]
    command = [sys.executable, "-c", EXPORT, source, out, precision, streamed]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    shutil.rmtree(out)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    loads = [round(load, 1), round(os.getloadavg()[0], 1)]
    return {**found, "load": loads, "threads": torch.get_num_threads(), "processor_name": processor()}


def write(row: dict[str, Any]) -> None:
    """Add a row, in the place of an older one of the same run."""
    path, key = RESULTS / "export-large.json", ("shape", "precision", "streamed")
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    rows = [each for each in rows if [each[name] for name in key] != [row[name] for name in key]] + [row]
    rows.sort(key=lambda each: (each["parameters"], each["precision"], each["streamed"]))
    heads = [
        "shape",
        "streamed",
        "checkpoint, GB",
        "precision",
        "written, GB",
        "peak, GB",
        "of it libraries",
        "seconds",
    ]
    heads += ["of the processor", "against torch"]
    cells = [
        [
            each["shape"],
            each["streamed"],
            f"{each['source'] / 1e9:.2f}",
            each["precision"],
            f"{each['bytes'] / 1e9:.2f}",
            f"{each['peak'] / 1e9:.2f}",
            f"{each['before'] / 1e9:.2f}",
            f"{each['seconds']:.0f}",
            f"{each['processor']:.0f}",
            f"{max(value for name, value in each['parity'].items() if name.startswith(FLOAT)):.1e}",
        ]
        for each in rows
    ]
    text = table(heads, cells) + "\n"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


FLOAT = ("onnx prefill", "onnx decode")
"""The comparisons of the graph in its float type, before weights are rounded."""


if __name__ == "__main__":
    main()
