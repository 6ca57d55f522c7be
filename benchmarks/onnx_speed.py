"""lpc's ONNX packages against onnxruntime-genai's model builder: milliseconds, spread and bytes, in one run.

    python benchmarks/onnx_speed.py MODEL --work DIR [--pruned HF_DIR] [--precision fp32,int4] [--rounds 15]
        [--attention plain,gqa] [--head int4] [--engine genai]

Writes each package that is not there yet into DIR, loads all of them, and has them take turns, call by call, in order
that rotates. The engine is onnxruntime, called step by step with a cache that is handed over, or GenAI, which keeps
the cache. The builder stores the head of an int4 model in 4 bits, which ``--head int4`` has lpc do as well. With one
thread (the default) the processor time of this process is compared, which other work on the machine disturbs less than
the clock; with more it is the clock's. A ratio is the median over the turns of lpc's time over the builder's of the
same precision. Prints a table, and writes it and the numbers into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporters.calls import Call, Graph, OnnxFolder, call_grid
from exporters.latency import processor
from exporters.options import GROUP_QUERY, PLAIN, OnnxOptions
from lpc import export
from passes.options import names_in

RESULTS = Path(__file__).parent / "results"
DECODES = 4
"""Turns of a decode step for one of a prefill, which takes so much longer."""
Turn = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One package on one call: milliseconds at the quartiles of its turns, and the ratio to the builder's."""

    package: str
    call: str
    ms: tuple[float, float, float]
    against_builder: tuple[float, float, float] | None


def packages(given: argparse.Namespace) -> dict[str, Path]:
    """Folders of the packages by name; those that are missing are made."""
    found, models = {}, {"lpc": given.model} | ({"lpc pruned": given.pruned} if given.pruned is not None else {})
    for precision in given.precision:
        found[f"builder {precision}"] = built(given.model, given.work / f"builder-{precision}", precision)
        for name, model in models.items():
            for attention in given.attention:
                options = OnnxOptions(precision=(precision,), attention=attention, head=given.head)
                folder = given.work / f"{name.replace(' ', '-')}-{attention}-{given.head}-head-{precision}"
                found[f"{name} {attention} {precision}"] = exported(model, folder, options)
    return found


def built(model: Path, folder: Path, precision: str) -> Path:
    """The builder's package of a model, as it makes it by default for the CPU."""
    if not (folder / "model.onnx").is_file():
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", model, "-o", folder, "-e", "cpu"]
        subprocess.run([*map(str, command), "-p", precision, "-c", str(folder) + ".cache"], check=True)
    return folder


def exported(model: Path, folder: Path, options: OnnxOptions) -> Path:
    """lpc's package of a model."""
    if not (folder / "model.onnx").is_file():
        export(model, folder, options)
    return folder


class InOnnxruntime:
    """A package whose graph is called, the cache handed over as it is."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.graph = Graph(OnnxFolder.find(folder), threads)

    def turn(self, call: Call, turns: int) -> Turn:
        """One call."""
        feeds = self.graph.feeds(call)
        return lambda: self.graph.run(feeds)


class InGenai:
    """A package in GenAI, which keeps the cache; over the turns of a decode step the past grows by as many tokens."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai as og

        self.og, config = og, og.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = og.Model(config)
        self.words = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["vocab_size"]

    def turn(self, call: Call, turns: int) -> Turn:
        """A prompt to its first token, in a cache of its own; or one more token."""
        ids = np.random.default_rng(0).integers(0, self.words, (call.batch, call.past or call.tokens)).astype(np.int32)
        if call.phase == "prefill":
            return lambda: self._read(ids, 1).generate_next_token()
        generator = self._read(ids, turns + 1)
        generator.generate_next_token()  # of the prompt's own logits
        return lambda: generator.generate_next_token()

    def _read(self, ids: np.ndarray, more: int) -> Any:
        parameters, length = self.og.GeneratorParams(self.model), ids.shape[1] + more + 1
        parameters.set_search_options(
            max_length=length, min_length=length, batch_size=len(ids), do_sample=False, repetition_penalty=1.0
        )
        generator = self.og.Generator(self.model, parameters)
        generator.append_tokens(ids)
        return generator


ENGINES: dict[str, Callable[[Path, int], InOnnxruntime | InGenai]] = {"onnxruntime": InOnnxruntime, "genai": InGenai}
Loaded = Mapping[str, InOnnxruntime | InGenai]


def timed(loaded: Loaded, call: Call, rounds: int, *, one_thread: bool) -> dict[str, np.ndarray]:
    """Seconds of every turn, by package; the first turn of each is not counted."""
    clock = time.process_time if one_thread else time.perf_counter
    turns = {name: each.turn(call, rounds + 1) for name, each in loaded.items()}
    seconds: dict[str, list[float]] = {name: [] for name in loaded}
    order = list(loaded)
    for turn in range(rounds + 1):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            start = clock()
            turns[name]()
            if turn:
                seconds[name].append(clock() - start)
    return {name: np.array(each) for name, each in seconds.items()}


def measured(loaded: Loaded, calls: list[Call], rounds: int, *, one_thread: bool) -> list[Timed]:
    """All packages on all calls."""
    found = []
    for call in calls:
        times = timed(loaded, call, rounds * (DECODES if call.phase == "decode" else 1), one_thread=one_thread)
        for name, seconds in times.items():
            base = times.get(f"builder {name.rpartition(' ')[2]}")
            ratio = None if base is None or name.startswith("builder") else quartiles(seconds / base)
            found.append(Timed(package=name, call=call.key, ms=quartiles(1000 * seconds), against_builder=ratio))
            print(found[-1], flush=True)
    return found


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """The first, the median and the third."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def table(found: list[Timed], sizes: dict[str, int]) -> str:
    """A row a package: megabytes, then for each call the median milliseconds and the ratio with its quartiles."""
    calls = list(dict.fromkeys(each.call for each in found))
    lines = [["package", "MB", *calls], ["---", *["---:"] * (len(calls) + 1)]]
    for name, size in sizes.items():
        cells = {each.call: each for each in found if each.package == name}
        lines.append([name, f"{size / 1e6:.1f}", *(_cell(cells[call]) for call in calls)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(timed: Timed) -> str:
    shown = f"{timed.ms[1]:.1f} ms"
    if timed.against_builder is None:
        return shown
    low, middle, high = timed.against_builder
    return f"{shown}, {middle:.2f} ({low:.2f}–{high:.2f})"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pruned", type=Path)
    parser.add_argument("--precision", type=names_in, default=("fp32", "int4"))
    parser.add_argument("--attention", type=names_in, default=(PLAIN, GROUP_QUERY))
    parser.add_argument("--head", default="int8", help="how lpc's int4 stores it")
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prefill", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--decode", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--name", default="smollm2", help="of the files in benchmarks/results: onnx-speed-NAME")
    given = parser.parse_args()
    folders = packages(given)
    loaded = {name: ENGINES[given.engine](folder, given.threads) for name, folder in folders.items()}
    calls = call_grid(tuple(given.batches), tuple(given.prefill), tuple(given.decode))
    load = os.getloadavg()[0]
    found = measured(loaded, calls, given.rounds, one_thread=given.threads == 1)
    sizes = {name: OnnxFolder.find(folder).file_bytes for name, folder in folders.items()}
    loads = f"load {load:.1f} before and {os.getloadavg()[0]:.1f} after"
    where = f"{given.engine}, {processor()}, {given.threads} thread(s), {loads}"
    text = f"{given.model.name}: {where}.\n\n{table(found, sizes)}\n"
    print(text)
    values = {"machine": where, "bytes": sizes, "runs": [asdict(each) for each in found]}
    (RESULTS / f"onnx-speed-{given.name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"onnx-speed-{given.name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
