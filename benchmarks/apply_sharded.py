"""Peak memory and time of ``lpc apply`` on a sharded checkpoint, against copying its files.

    python benchmarks/apply_sharded.py [--gigabytes N] [--shard 5GB] [--adapter] [--work DIR]

    python benchmarks/apply_sharded.py --model DIR [--plan PLAN] [--adapter DIR]

A Llama-shaped checkpoint of random bf16 weights, so many GB of it, is made in a scratch folder and removed again; a
plan that is not given keeps about three quarters of the units, at random. The command runs in a process of its own,
whose peak is the kernel's own (VmHWM; ru_maxrss would be that of the process which started it, if that was larger);
what of it Python and its libraries take is measured before the first shard is read. Importing torch and transformers
is a row of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from exporters.latency.machine import Machine
from lpc.report import table
from lpc.source import find_unloaded
from lpc.versions import versions
from passes.graph import Plan, PruningGraph
from passes.models import Fingerprint, count_parameters, twin_of
from passes.trace import trace

OUT = Path(__file__).parent / "out"
MIB = 2**20
SHAPE = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
SMALL_SHAPE = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}
KEPT = 0.75

APPLY = """
import json, sys, time
began = time.perf_counter()
import psutil, torch, transformers, peft, lpc.streaming
imported, spent = time.perf_counter(), time.process_time()
before = psutil.Process().memory_info().rss
plan, model, out, adapter = sys.argv[1:]
import lpc
report = lpc.apply_to(plan, model, out, adapter=adapter or None, force=True)
done = time.perf_counter()
passes = {each.name: each.seconds for each in report.passes}
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
spent = time.process_time() - spent
times = {"import": imported - began, "apply": done - imported, "processor": spent, "passes": passes}
print(json.dumps({**times, "before": before, "peak": peak}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--shard", default="5GB")
    parser.add_argument("--work", help="where to make it (default: the system's temporary folder)")
    parser.add_argument("--model", help="a model folder to take instead")
    parser.add_argument("--plan", help="a plan for it")
    parser.add_argument("--adapter", default="", help="its adapter")
    parser.add_argument("--turns", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        work = Path(name)
        if arguments.model:
            source, plan = Path(arguments.model), Path(arguments.plan or work / "plan.json")
            if not arguments.plan:
                plan.write_text(planned(source).to_json())
        else:
            source, plan = work / "model", work / "plan.json"
            plan.write_text(made(source, arguments).to_json())
        turns = [measured(source, plan, work, arguments.adapter) for _ in range(arguments.turns)]
    _write(turns, source, arguments)


def made(folder: Path, arguments: argparse.Namespace) -> Plan:
    """Write a checkpoint of about so many bytes, a tensor at a time; returns a plan for it."""
    wanted = arguments.gigabytes * 1e9
    shape, vocabulary = (SHAPE, 128256) if wanted > 4e9 else (SMALL_SHAPE, 32768)
    layer = _bytes(_config(shape, vocabulary, 2)) - _bytes(_config(shape, vocabulary, 1))
    rest = _bytes(_config(shape, vocabulary, 1)) - layer
    config = _config(shape, vocabulary, max(1, round((wanted - rest) / layer)))
    folder.mkdir(parents=True)
    twin = twin_of(LlamaForCausalLM, config).to(torch.bfloat16)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(folder)
    graph = trace(config, torch.bfloat16, model_type=LlamaForCausalLM)
    return _random(graph, fill(folder, twin, size_of(arguments.shard), Fingerprint(config)))


def planned(folder: Path) -> Plan:
    """A plan for a model folder."""
    source, _ = find_unloaded(folder)
    model, whole = source.model, Fingerprint(source.model.config)
    for name, tensor in source.tensors():
        whole.add(name, tensor)
    return _random(trace(model.config, model.dtype, model_type=type(model)), whole.hexdigest())


def _random(graph: PruningGraph, source: str) -> Plan:
    """A plan of random units: of each width the largest count that is at most three quarters."""
    draw = random.Random(0)
    counts = {w.name: max([c for c in w.counts if c <= KEPT * w.size], default=w.size) for w in graph.widths}
    kept = {d.name: tuple(sorted(draw.sample(range(d.size), counts[d.width]))) for d in graph.dimensions}
    return Plan(
        source=source, family=graph.family, budget={"parameters": KEPT}, source_parameters=graph.parameters(),
        target_parameters=graph.parameters(kept), kept=kept,
    )  # fmt: skip


def _config(shape: Mapping[str, int], vocabulary: int, layers: int) -> LlamaConfig:
    return LlamaConfig(**shape, vocab_size=vocabulary, num_hidden_layers=layers, tie_word_embeddings=False)


def _bytes(config: LlamaConfig) -> int:
    return 2 * count_parameters(twin_of(LlamaForCausalLM, config))


def size_of(text: str) -> int:
    return int(float(text[:-2]) * {"MB": 1e6, "GB": 1e9}[text[-2:]])


def fill(folder: Path, twin: torch.nn.Module, shard: int, whole: Fingerprint) -> str:
    """Write random shards; returns the fingerprint."""
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Size]] = [{}]
    room = shard
    for name, parameter in sorted(twin.named_parameters()):
        if 2 * parameter.numel() > room and shards[-1]:
            shards.append({})
            room = shard
        shards[-1][name] = parameter.shape
        room -= 2 * parameter.numel()
    index = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name, size in names.items():
            block = torch.randn(min(size.numel(), 1 << 22), generator=generator, dtype=torch.float32)
            values = block.mul_(0.02).to(torch.bfloat16)
            tensors[name] = values.repeat(-(-size.numel() // len(values)))[: size.numel()].reshape(size)
            whole.add(name, tensors[name])
            index[name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return whole.hexdigest()


def measured(source: Path, plan: Path, work: Path, adapter: str) -> dict[str, Any]:
    """Copying the files of a checkpoint, with the copy on the disk, and applying a plan to it."""
    files = sorted(source.glob("*.safetensors"))
    copy = work / "copy"
    began = time.perf_counter()
    shutil.copytree(source, copy)
    subprocess.run(["sync", "-f", str(copy)], check=True)
    copied = time.perf_counter() - began
    shutil.rmtree(copy)
    command = [sys.executable, "-c", APPLY, str(plan), str(source), str(work / "out"), adapter]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    written = sum(path.stat().st_size for path in (work / "out" / "hf").glob("*.safetensors"))
    shutil.rmtree(work / "out")
    sizes = [path.stat().st_size for path in files]
    return {**found, "copy": copied, "bytes": sum(sizes), "shard": max(sizes), "written": written}


def _write(turns: list[dict[str, Any]], source: Path, arguments: argparse.Namespace) -> None:
    best = min(turns, key=lambda turn: float(turn["apply"]))
    own = best["peak"] - best["before"]
    rows = [
        ["source, GB", f"{best['bytes'] / 1e9:.2f}"],
        ["largest shard, MiB", f"{best['shard'] / MIB:,.0f}"],
        ["written, GB", f"{best['written'] / 1e9:.2f}"],
        ["resident before the first tensor, MiB", f"{best['before'] / MIB:,.0f}"],
        ["peak resident, MiB", f"{best['peak'] / MIB:,.0f}"],
        ["peak above that, MiB", f"{own / MIB:,.0f}"],
        ["the same, of the largest shard", f"{own / best['shard']:.2f}"],
        ["copying the files, s", f"{best['copy']:.1f}"],
        ["imports, s", f"{best['import']:.1f}"],
        ["apply without imports, s", f"{best['apply']:.1f}"],
        ["the same, of copying", f"{best['apply'] / best['copy']:.2f}"],
        ["processor seconds of it", f"{best['processor']:.1f}"],
        *([f"of it {name}, s", f"{seconds:.1f}"] for name, seconds in best["passes"].items()),
    ]
    name = source.resolve().name if arguments.model else f"{arguments.gigabytes:g}gb"
    text = f"{name}, the best of {len(turns)} turns, {torch.get_num_threads()} threads\n\n{table(['', ''], rows)}\n"
    OUT.mkdir(exist_ok=True)
    values = {"options": vars(arguments), "machine": asdict(Machine.here()), "versions": versions(), "turns": turns}
    (OUT / f"apply-{name}.json").write_text(json.dumps(values, indent=1) + "\n")
    (OUT / f"apply-{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
