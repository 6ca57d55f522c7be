"""Random compressions of tiny models, round after round: right, refused with a message, or a failure.

    python benchmarks/soak.py [--rounds 200] [--seed 0] [--batch 10] [--fresh]

A round draws a family of ``tests/zoo.py``, a dtype, a layout, a budget and options by its number alone, compresses the
model and saves it in both formats. It is *right* if every proof of the run passed, the budget is met, and the saved
checkpoint computes what the result computes; *refused* if an ``LpcError`` other than a violated proof was raised, and
else a *failure*. Rounds run in processes of ``--batch`` rounds; each is a line of ``benchmarks/out/soak.jsonl``, so an
interrupted soak goes on. ``benchmarks/results/soak.json`` has all of it, ``soak.md`` the table that docs/trust.md
shows. Exits 1 if there is a failure.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
for place in (ROOT, ROOT / "tests", ROOT / "tests" / "matrix"):
    sys.path.insert(0, str(place))

import psutil
import torch
import zoo
from conftest import build_tokenizer
from default_way import DTYPES, rows_for, story

import lpc
from exporters.options import OnnxOptions
from lpc.report.render import text_table
from lpc.source import load_source
from passes.models import Probe, count_parameters, respond

LINES = ROOT / "benchmarks" / "out" / "soak.jsonl"
RESULTS = ROOT / "benchmarks" / "results"
SKIPPED = 1
"""Rounds at the start of a process that say nothing of its memory: libraries are loaded in them."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round as it was drawn."""

    number: int
    family: str
    dtype: str
    layout: str
    budget: dict[str, float]
    steps: int
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``verdict`` is right, refused or failure; ``said`` the error. ``parity``: the worst relative difference, by pass.

    ``rss`` is the process's resident memory after the round in bytes, ``place`` which of its rounds it was.
    """

    verdict: str
    said: str
    parity: dict[str, float]
    seconds: float
    rss: int
    place: int


def drawn(number: int, seed: int) -> Round:
    """The round of that number."""
    chance = random.Random(f"{seed}/{number}")
    measure = chance.choice(["parameters", "parameters", "macs", "weight_bytes", "kv_cache_bytes"])
    budget = {measure: round(chance.uniform(0.55, 0.95), 3)}
    if chance.random() < 0.2:
        budget["parameters"] = round(chance.uniform(0.6, 0.97), 3)
    options = {
        "criterion": chance.choice(["auto", "auto", "auto", "loraprune", "loraprune-code", "taylor", "wanda", "flap"]),
        "seed": chance.randrange(1000),
        "batch_size": chance.choice([1, 2, 4, 8]),
        "compensate": chance.choice([None, None, True, False]),
        "rank": chance.choice([2, 4, 32]),
        "alpha": chance.choice([1.0, 16.0, 64.0]),
        "distill": chance.random() < 0.7,
        "query_heads": chance.random() < 0.15,
        "custom_code": chance.random() < 0.3,
        "depth": chance.choice([None, None, None, None, "layers", "blocks"]),
        "hidden": chance.random() < 0.15,
        "recover": chance.random() < 0.15,
    }
    return Round(
        number=number,
        family=chance.choice(list(zoo.ZOO)),
        dtype=chance.choice(list(DTYPES)),
        layout=chance.choice(["uniform", "uniform", "per-layer"]),
        budget=budget,
        steps=chance.choice([0, 1, 2, 3]),
        options=options,
    )


def compressed(case: Round) -> lpc.Result:
    """The result of a round. Raises LpcError."""
    options, text = case.options, zoo.ZOO[case.family].task == "causal-lm"
    data: Any = story() if text else rows_for(case.family)
    distill = lpc.DistillOptions() if options["distill"] else None
    limits: dict[str, Any] = case.budget
    return lpc.compress(
        zoo.build(case.family, seed=case.number).to(DTYPES[case.dtype]),
        data,
        target=lpc.Target(budget=lpc.Budget(**limits), layout=case.layout),
        tokenizer=build_tokenizer() if text else None,
        lora=lpc.LoraOptions(rank=options["rank"], alpha=options["alpha"]),
        tune=lpc.TuneOptions(
            steps=case.steps,
            criterion=options["criterion"],
            distill=distill,
        ),
        run=lpc.RunOptions(seed=options["seed"], batch_size=options["batch_size"], samples=12),
        sequence_length=32 if text else None,
        trace=lpc.TraceOptions(**{name: options[name] for name in ("query_heads", "custom_code", "depth", "hidden")}),
        compensate=options["compensate"],
        recover=lpc.RecoverOptions(steps=2) if options["recover"] else None,
        export=["hf", "onnx"],
    )


def check(case: Round, result: lpc.Result, folder: Path) -> dict[str, float]:
    """Save the result and compare the checkpoint once more; the worst parity by pass. Raises AssertionError."""
    report = result.save(folder, export={"hf": None, "onnx": OnnxOptions(greedy_prompts=1, greedy_tokens=4)})
    again, probe = load_source(folder / "hf").model, Probe.of(result.model)
    respond(again, probe).compare("the saved checkpoint", respond(result.model, probe), 0.0)
    counted, planned = count_parameters(result.model), result.plan.target_parameters
    assert counted == planned, f"{counted} parameters are left, the plan says {planned}"
    share = case.budget.get("parameters")
    assert share is None or counted <= share * result.plan.source_parameters, f"{counted} parameters are over {share}"
    worst: dict[str, float] = {}
    for record in report.passes:
        for parity in record.parity:
            worst[record.name] = max(worst.get(record.name, 0.0), parity.value)
    return worst


def tried(case: Round, place: int) -> Outcome:
    """One round."""
    began, said, verdict, parity = time.perf_counter(), "", "right", dict[str, float]()
    try:
        with tempfile.TemporaryDirectory(prefix="lpc-soak-") as folder:
            parity = check(case, compressed(case), Path(folder) / "out")
    except lpc.PassError as error:
        verdict, said = "failure", f"{type(error).__name__}: {error}"
    except lpc.LpcError as error:
        verdict, said = "refused", f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - whatever else it is, it is a failure
        verdict, said = "failure", f"{type(error).__name__}: {error}"
    rss = psutil.Process().memory_info().rss
    seconds = round(time.perf_counter() - began, 2)
    return Outcome(verdict=verdict, said=said[:600], parity=parity, seconds=seconds, rss=rss, place=place)


def run_here(numbers: Iterable[int], seed: int) -> None:
    """Run these rounds in this process, a line each."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lpc", "passes", "exporters", "transformers", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for place, number in enumerate(numbers):
        case = drawn(number, seed)
        line = {**asdict(case), "of_seed": seed, **asdict(tried(case, place))}
        with LINES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{number}: {case.family} {case.dtype} {case.layout}: {line['verdict']} {line['said'][:200]}", flush=True)


def slope(lines: list[dict[str, Any]]) -> float:
    """Growth of resident memory in bytes a round: least squares within each process, the mean over processes."""
    runs: list[list[dict[str, Any]]] = []
    for line in lines:
        if line["place"] == 0 or not runs:
            runs.append([])
        runs[-1].append(line)
    found = [_slope([(x["place"], x["rss"]) for x in run if x["place"] >= SKIPPED]) for run in runs]
    known = [each for each in found if each is not None]
    return sum(known) / len(known) if known else 0.0


def _slope(points: list[tuple[int, int]]) -> float | None:
    if len(points) < 3:
        return None
    places, sizes = zip(*points, strict=True)
    return statistics.linear_regression(places, sizes).slope


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, the worst parity by pass, seconds and the slope of memory."""
    worst: dict[str, float] = {}
    for line in lines:
        for name, value in line["parity"].items():
            worst[name] = max(worst.get(name, 0.0), value)
    return {
        "rounds": len(lines),
        **{verdict: sum(line["verdict"] == verdict for line in lines) for verdict in ("right", "refused", "failure")},
        "families": len({line["family"] for line in lines}),
        "worst_parity": worst,
        "refusals": dict(Counter(line["said"].partition(":")[0] for line in lines if line["verdict"] == "refused")),
        "rss_bytes_a_round": round(slope(lines)),
        "seconds": round(sum(line["seconds"] for line in lines)),
    }


def table(found: dict[str, Any]) -> str:
    """The summary as a table of markdown."""
    parities = ", ".join(f"{name} {value:.0e}" for name, value in found["worst_parity"].items())
    refusals = ", ".join(f"{count} {name}" for name, count in sorted(found["refusals"].items()))
    rows = [
        ["rounds (families)", f"{found['rounds']} ({found['families']})"],
        ["right", str(found["right"])],
        ["refused with a message", f"{found['refused']} ({refusals})" if refusals else "0"],
        ["failures", str(found["failure"])],
        ["worst relative difference", parities],
        ["growth of resident memory", f"{found['rss_bytes_a_round'] / 2**20:.2f} MiB a round"],
    ]
    return text_table(["soak", ""], rows)


def kept() -> list[dict[str, Any]]:
    """The rounds that are done."""
    return [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()] if LINES.is_file() else []


def main() -> int:
    """Run the rounds that are missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=10, help="rounds a process")
    parser.add_argument("--fresh", action="store_true", help="forget what is done")
    parser.add_argument("--numbers", nargs="*", type=int, help="these rounds, in this process")
    arguments = parser.parse_args()
    LINES.parent.mkdir(exist_ok=True)
    if arguments.numbers is not None:
        run_here(arguments.numbers, arguments.seed)
        return 0
    if arguments.fresh:
        LINES.unlink(missing_ok=True)
    done = {line["number"] for line in kept() if line["of_seed"] == arguments.seed}
    missing = [number for number in range(arguments.rounds) if number not in done]
    for first in range(0, len(missing), arguments.batch):
        numbers = map(str, missing[first : first + arguments.batch])
        subprocess.run([sys.executable, __file__, "--seed", str(arguments.seed), "--numbers", *numbers], check=False)
    lines = [line for line in kept() if line["of_seed"] == arguments.seed and line["number"] < arguments.rounds]
    found = summary(lines)
    RESULTS.joinpath("soak.json").write_text(json.dumps({**found, "lines": lines}, indent=1) + "\n", encoding="utf-8")
    RESULTS.joinpath("soak.md").write_text(table(found) + "\n", encoding="utf-8")
    print(table(found))
    return 1 if found["failure"] or len(lines) < arguments.rounds else 0


if __name__ == "__main__":
    sys.exit(main())
