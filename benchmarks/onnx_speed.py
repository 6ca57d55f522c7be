"""lpc's ONNX packages against those of others: milliseconds, spread, bytes and the physical limit, in one run.

    python benchmarks/onnx_speed.py MODEL --work DIR [--pruned HF_DIR] [--precision fp32,int4] [--rounds 15]
        [--attention plain,gqa] [--head int4] [--engine genai] [--peers builder,transformers,torch]

MODEL is a folder or a shape of ``onnx_shapes.py``, of random weights (``--pruned yes`` is the same shape pruned).
Writes each package that is not there yet into DIR, loads all of them, and has them take turns, call by call, in order
that rotates. The engine is onnxruntime, called step by step with a cache that is handed over, or GenAI, which keeps
the cache. The builder stores the head of an int4 model in 4 bits, which ``--head int4`` has lpc do as well. With one
thread (the default) the processor time of this process is compared, which other work on the machine disturbs less than
the clock; with more it is the clock's. A ratio is the median over the turns of a package's time over the builder's of
the same precision; of a pruned one over that of lpc's own dense package. The second table has what each takes in
multiples of the least that the machine allows one thread (``onnx_limit.py``). Prints the tables, and writes them and
the numbers into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx_limit import Machine, Work, machine, work
from onnx_peers import built, by_torch, by_transformers, exported
from onnx_shapes import SHAPES, made

from exporters.calls import Call, Graph, OnnxFolder, call_grid
from exporters.latency import processor
from exporters.options import GROUP_QUERY, PLAIN, OnnxOptions
from passes.options import names_in

RESULTS = Path(__file__).parent / "results"
DECODES = 4
"""Turns of a decode step for one of a prefill, which takes so much longer."""
BUILDER, DENSE, PRUNED = "builder", "lpc", "lpc pruned"
IN_FP32 = {"transformers": by_transformers, "torch": by_torch}
Turn = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One package on one call: milliseconds at the quartiles of its turns, and the ratio to that of another package.

    ``limit_ms``: the least that the machine allows for what the package computes.
    """

    package: str
    call: str
    ms: tuple[float, float, float]
    against: str | None
    ratio: tuple[float, float, float] | None
    limit_ms: float


def packages(given: argparse.Namespace) -> dict[str, Path]:
    """Folders of the packages by name; those that are missing are made."""
    found, models = {}, {DENSE: given.model} | ({PRUNED: given.pruned} if given.pruned is not None else {})
    for precision in given.precision:
        if BUILDER in given.peers:
            found[f"{BUILDER} {precision}"] = built(given.model, given.work / f"builder-{precision}", precision)
        for name, model in models.items():
            for attention in given.attention:
                options = OnnxOptions(precision=(precision,), attention=attention, head=given.head)
                folder = given.work / f"{name.replace(' ', '-')}-{attention}-{given.head}-head-{precision}"
                found[f"{name} {attention} {precision}"] = exported(model, folder, options)
    for name, make in IN_FP32.items():
        if name in given.peers and "fp32" in given.precision:
            found[f"{name} fp32"] = make(given.model, given.work / name)
    return found


def base_of(name: str, names: Mapping[str, Any]) -> str | None:
    """The package that this one is compared with: the builder's of its precision, or lpc's own if it is pruned."""
    base = name.replace(PRUNED, DENSE) if name.startswith(PRUNED) else f"{BUILDER} {precision_of(name)}"
    return base if base in names and base != name else None


def precision_of(name: str) -> str:
    """The last word of a package's name."""
    return name.rpartition(" ")[2]


def works(folders: Mapping[str, Path]) -> dict[str, Work]:
    """What each package computes: what lpc's of the same model and precision does."""
    models = {name: PRUNED if name.startswith(PRUNED) else DENSE for name in folders}
    own = {(models[name], precision_of(name)): work(path) for name, path in folders.items() if name.startswith("lpc")}
    return {name: own[models[name], precision_of(name)] for name in folders}


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


def measured(
    loaded: Loaded, calls: list[Call], given: argparse.Namespace, works: Mapping[str, Work], here: Machine
) -> list[Timed]:
    """All packages on all calls."""
    found = []
    for call in calls:
        rounds = given.rounds * (DECODES if call.phase == "decode" else 1)
        times = timed(loaded, call, rounds, one_thread=given.threads == 1)
        for name, seconds in times.items():
            base = base_of(name, times)
            ratio = None if base is None else quartiles(seconds / times[base])
            limit = works[name].least_ms(call, here)
            ms = quartiles(1000 * seconds)
            found.append(Timed(package=name, call=call.key, ms=ms, against=base, ratio=ratio, limit_ms=limit))
            print(found[-1], flush=True)
    return found


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """The first, the median and the third."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def table(found: list[Timed], sizes: dict[str, int]) -> str:
    """A row a package: megabytes, then for each call the median milliseconds and the ratio with its quartiles."""
    rows = [[name, f"{size / 1e6:.1f}", *map(_cell, _of(found, name))] for name, size in sizes.items()]
    return _lines(["package", "MB", *dict.fromkeys(each.call for each in found)], rows)


def limits(found: list[Timed]) -> str:
    """A row a package: for each call the median as a multiple of the limit, which is in brackets."""
    cells = {
        name: [f"{each.ms[1] / each.limit_ms:.2f} ({each.limit_ms:.1f} ms)" for each in _of(found, name)]
        for name in dict.fromkeys(each.package for each in found)
    }
    rows = [[name, *row] for name, row in cells.items()]
    return _lines(["package, over the limit", *dict.fromkeys(each.call for each in found)], rows)


def _of(found: list[Timed], package: str) -> list[Timed]:
    return [each for each in found if each.package == package]


def _lines(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(timed: Timed) -> str:
    shown = f"{timed.ms[1]:.1f} ms"
    if timed.ratio is None:
        return shown
    low, middle, high = timed.ratio
    return f"{shown}, {middle:.2f} ({low:.2f}–{high:.2f})"


def arguments() -> argparse.Namespace:
    """What was asked; models of random weights are made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or a shape: " + ", ".join(SHAPES))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pruned", help="a folder; of a shape: yes")
    parser.add_argument("--precision", type=names_in, default=("fp32", "int4"))
    parser.add_argument("--attention", type=names_in, default=(PLAIN, GROUP_QUERY))
    parser.add_argument("--peers", type=names_in, default=(BUILDER,), help=", ".join((BUILDER, *IN_FP32)))
    parser.add_argument("--head", default="int8", help="how lpc's int4 stores it")
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prefill", type=int, nargs="*", default=[128, 512])
    parser.add_argument("--decode", type=int, nargs="*", default=[128, 1024])
    parser.add_argument("--most-new", type=int, default=4096, help="no call with more new tokens, of all rows together")
    parser.add_argument("--most-past", type=int, default=8192, help="none with more past ones")
    parser.add_argument("--name", default="smollm2", help="of the files in benchmarks/results: onnx-speed-NAME")
    given = parser.parse_args()
    if given.model in SHAPES:
        given.pruned = made(given.model, given.work, pruned=True) if given.pruned else None
        given.model = made(given.model, given.work, pruned=False)
    given.model, given.pruned = Path(given.model), given.pruned and Path(given.pruned)
    return given


def main() -> None:
    """Measure, print and write."""
    given = arguments()
    folders = packages(given)
    here, needed = machine(), works(folders)
    loaded = {name: ENGINES[given.engine](folder, given.threads) for name, folder in folders.items()}
    calls = call_grid(tuple(given.batches), tuple(given.prefill), tuple(given.decode))
    calls = [each for each in calls if each.batch * each.tokens <= given.most_new]
    calls = [each for each in calls if each.batch * each.past <= given.most_past]
    load = os.getloadavg()[0]
    found = measured(loaded, calls, given, needed, here)
    sizes = {name: OnnxFolder.find(folder).file_bytes for name, folder in folders.items()}
    loads = f"load {load:.1f} before and {os.getloadavg()[0]:.1f} after"
    where = f"{given.engine}, {processor()}, {given.threads} thread(s), {loads}"
    text = f"{given.model.name}: {where}.\n\n{table(found, sizes)}\n\n{_rates(here, needed)}\n\n{limits(found)}\n"
    print(text)
    values = {"machine": where, "rates": asdict(here), "bytes": sizes, "runs": [asdict(each) for each in found]}
    (RESULTS / f"onnx-speed-{given.name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"onnx-speed-{given.name}.md").write_text(text, encoding="utf-8")


def _rates(here: Machine, works: Mapping[str, Work]) -> str:
    """What the limit is made of, and what is left of the dense model's weights where another is pruned."""
    kept = [each.macs for name, each in works.items() if name.startswith(PRUNED)]
    dense = [each.macs for name, each in works.items() if not name.startswith(PRUNED)]
    share = f" The pruned model multiplies with {kept[0] / dense[0]:.3f} of the dense one's weights." if kept else ""
    rates = f"{here.bytes_s / 1e9:.1f} GB/s read, {here.flops_s / 1e9:.0f} GFLOP/s of fp32 products"
    return f"The limit: {rates}, one thread.{share}"


if __name__ == "__main__":
    main()
