"""What a precision costs a model, whole and pruned: bytes, perplexity, milliseconds of prefill and decode; one table.

    python benchmarks/onnx_precisions.py MODEL --pruned HF_DIR --work DIR --text TEST --calibration TRAIN [--name NAME]

Each package is made and measured once: what is in DIR/NAME is not done again. Perplexity is that of the graph in
onnxruntime, on the first ``--rows`` rows of ``--tokens`` tokens of TEST. Then all packages take turns in GenAI, which
keeps the cache (see ``onnx_speed.py``); a ratio is the median over the turns to dense fp32. Prints a table, and writes
it and the numbers into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from onnx_speed import RESULTS, InGenai, quartiles, timed
from transformers import AutoTokenizer

from exporters.calls import Call
from exporters.latency import processor
from exporters.options import OnnxOptions
from lpc import export, quality

DENSE, PRUNED = "dense", "pruned"
BASE = f"{DENSE} fp32"
ROWS = (
    *(f"{DENSE} {each}" for each in ("fp32", "int4", "int4, GPTQ")),
    *(f"{PRUNED} {each}" for each in ("fp32", "int8", "int4", "int4, GPTQ")),
)
CALLS = (Call(phase="prefill", batch=1, tokens=128, past=0), Call(phase="decode", batch=1, tokens=1, past=128))
HEADINGS = ("ms, 128 tokens of prompt", "ms, a token behind 128")


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package: its graph and weights in bytes, its perplexity, and the seconds that it took to make and verify."""

    file_bytes: int
    perplexity: float
    export_s: float
    parity: dict[str, float]


def texts(given: argparse.Namespace) -> Path:
    """The rows of the text, as ``lpc.quality`` reads them."""
    path: Path = given.work / f"rows-{given.rows}x{given.tokens}.jsonl"
    ids = AutoTokenizer.from_pretrained(given.model)(given.text.read_text(encoding="utf-8"), verbose=False).input_ids
    rows = [ids[start : start + given.tokens] for start in range(0, given.rows * given.tokens, given.tokens)]
    path.write_text("".join(json.dumps({"input_ids": row, "labels": row}) + "\n" for row in rows), encoding="utf-8")
    return path


def made(name: str, given: argparse.Namespace, rows: Path) -> Package:
    """A package and what it is measured to be, from its folder if that was done before."""
    folder = given.work / name.replace(",", "").replace(" ", "-")
    known = folder.with_suffix(".json")
    if not known.is_file():
        model = given.model if name.startswith(DENSE) else given.pruned
        calibration = given.calibration if name.endswith("GPTQ") else None
        precision = name.split()[1].rstrip(",")
        start = time.process_time()
        package = export(model, folder, OnnxOptions(precision=(precision,), calibration=calibration), force=True)
        seconds = time.process_time() - start
        found = Package(
            file_bytes=package.file_bytes,
            perplexity=quality(folder, str(rows), batch_size=1).perplexity or float("nan"),
            export_s=seconds,
            parity={each.name: each.value for each in package.parity},
        )
        known.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
        print(name, found, flush=True)
    return Package(**json.loads(known.read_text(encoding="utf-8")))


def taken(given: argparse.Namespace) -> dict[str, dict[str, np.ndarray]]:
    """Milliseconds of every turn, by call and package."""
    loaded = {name: InGenai(given.work / name.replace(",", "").replace(" ", "-"), 1) for name in ROWS}
    found = {}
    for call in CALLS:
        rounds = given.rounds * (4 if call.phase == "decode" else 1)
        found[call.key] = {name: 1000 * each for name, each in timed(loaded, call, rounds, one_thread=True).items()}
    return found


def table(packages: Mapping[str, Package], turns: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """A row a package."""
    lines = [["package", "MB", "perplexity", *HEADINGS], ["---", *["---:"] * (2 + len(HEADINGS))]]
    for name, package in packages.items():
        cells = []
        for each in turns.values():
            low, middle, high = quartiles(each[name] / each[BASE])
            cells.append(f"{np.median(each[name]):.1f}, {middle:.2f} ({low:.2f}–{high:.2f})")
        lines.append([name, f"{package.file_bytes / 1e6:.1f}", f"{package.perplexity:.2f}", *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Make, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    for name in ("pruned", "work", "text", "calibration"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", choices=ROWS, action="append", help="make and measure these alone, and time none")
    parser.add_argument("--name", default="smollm2", help="of the files in benchmarks/results: onnx-precisions-NAME")
    given = parser.parse_args()
    given.work /= given.name
    given.work.mkdir(parents=True, exist_ok=True)
    rows = texts(given)
    packages = {name: made(name, given, rows) for name in given.only or ROWS}
    if given.only:
        return
    load, turns = os.getloadavg()[0], taken(given)
    where = f"{processor()}, 1 thread, processor time, load {load:.1f} before and {os.getloadavg()[0]:.1f} after"
    text = (
        f"{given.name}, {given.rows * given.tokens} tokens of {given.text.name}: {where}.\n\n{table(packages, turns)}\n"
    )
    print(text)
    ms = {call: {name: quartiles(each) for name, each in by_name.items()} for call, by_name in turns.items()}
    values = {"machine": where, "packages": {name: asdict(each) for name, each in packages.items()}, "ms": ms}
    (RESULTS / f"onnx-precisions-{given.name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"onnx-precisions-{given.name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
