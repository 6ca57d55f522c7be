"""The matrix of families: each one traced, adapted, scored, pruned, reloaded and exported, with the worst number.

    python tests/matrix/families.py [--only NAME ...] [--plans 50] [--again row default] [--fresh]

Runs the tiny models of ``tests/zoo.py`` on the CPU, each in a process of its own, about twenty minutes for all; cells
that are done are kept in ``benchmarks/out/families.json`` (it begins with the last results), so an interrupted run goes
on. When every family has its row it writes ``benchmarks/results/families.json`` and from that ``docs/families.md``;
the cell of the defaults may still be open there, and the next run fills it in.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
for place in (ROOT, ROOT / "tests", ROOT / "tests" / "passes"):
    sys.path.insert(0, str(place))

import torch
import zoo
from conftest import build_tokenizer
from default_way import DTYPES, by_default
from matrix_importance import importance_error
from matrix_page import page
from matrix_sizes import real_sizes
from onnx_outcome import ExportOutcome, try_export
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from exporters.hf import needs_modelling_file, reload
from exporters.hf.checkpoint import first_different_tensor, save_checkpoint
from exporters.options import OnnxOptions
from lpc.report import untouched
from passes.budget import reachable_counts
from passes.errors import LpcError
from passes.graph import PruningGraph, Width
from passes.models import Probe, count_parameters, masked, respond
from passes.options import LoraOptions, TraceOptions
from passes.pipeline import Program
from passes.shrink import build_compact
from passes.trace import TracePass, trace
from passes.tuning import AttachPass

OUT = ROOT / "benchmarks" / "out" / "families.json"
RESULTS = ROOT / "benchmarks" / "results" / "families.json"
ALL_MODELS = ROOT / "benchmarks" / "results" / "all_models.json"
PAGE = ROOT / "docs" / "families.md"
PACKAGES = ("torch", "transformers", "peft", "onnxruntime", "onnxruntime-genai")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One family's numbers: relative differences, the worst of all plans; texts say why there is none.

    ``units``: prunable units, a width: [dense, least with the stock class, least with a modelling file].
    """

    name: str
    family: str
    model_class: str
    task: str
    parameters: int
    units: dict[str, list[int]]
    attach: float
    importance: float
    shrink: float
    plans: int
    reload_stock: float | None
    reload_file: float | None
    onnx: float | str | None
    genai: str | None
    untouched: dict[str, str]


def plans(graph: PruningGraph, count: int, seed: int) -> Iterator[dict[str, list[int]]]:
    """Random kept units, in sizes that ``lpc compress`` may choose; the first plan keeps least, the last nearly all."""
    generator = random.Random(seed)
    for number in range(count):
        ends = {0: lambda counts: counts[0], count - 1: lambda counts: counts[max(0, len(counts) - 2)]}
        choose = ends.get(number, generator.choice)
        kept = {width.name: choose(reachable_counts(width, None)) for width in graph.widths}
        yield {d.name: sorted(generator.sample(range(d.size), kept[d.width])) for d in graph.dimensions}


def shrink_difference(model: PreTrainedModel, graph: PruningGraph, kept: dict[str, list[int]]) -> float:
    """How far the compact model's outputs are from the masked model's; also checks the number of parameters."""
    probe = Probe.of(model)
    masks = {d.name: torch.zeros(d.size, dtype=torch.bool).index_fill(0, torch.tensor(kept[d.name]), True)
             for d in graph.dimensions}  # fmt: skip
    with masked(model, graph, masks):
        wanted = respond(model, probe)
    compact = build_compact(model, graph, kept)
    expected = graph.parameters({name: len(units) for name, units in kept.items()})
    if count_parameters(compact) != expected:
        raise AssertionError(f"{count_parameters(compact)} parameters are left, the closed form says {expected}")
    return respond(compact, probe).compare("shrink", wanted, 1e-5).value


def reload_differences(model: PreTrainedModel, graphs: list[PruningGraph]) -> tuple[float | None, float | None]:
    """The difference after save and reload: with the stock class, and with the modelling file where one is needed."""
    found: dict[bool, float] = {}
    for graph in graphs:
        compact = build_compact(model, graph, next(iter(plans(graph, 1, 0))))
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(compact, None, Path(folder))
            again = reload(Path(folder))
        if first_different_tensor(compact, again) is not None:
            raise AssertionError(f"{first_different_tensor(compact, again)} is not what was saved")
        probe = Probe.of(compact)
        value = respond(again, probe).compare("reload", respond(compact, probe), 0.0).value
        if any(len(width.counts) > 1 for width in graph.widths):
            found[needs_modelling_file(compact)] = value
    return found.get(False), found.get(True)


def onnx_outcome(model: PreTrainedModel, graph: PruningGraph) -> ExportOutcome:
    """A compact model in onnxruntime and GenAI: the worst difference from torch, or why it is refused."""
    kept = list(plans(graph, 3, 1))[1]
    options = OnnxOptions(greedy_prompts=1, greedy_tokens=4)
    return try_export(build_compact(model, graph, kept), build_tokenizer(), options)


def traced(model: PreTrainedModel, *, custom_code: bool) -> PruningGraph:
    return trace(model.config, model_type=type(model), options=TraceOptions(custom_code=custom_code))


def least(width: Width) -> int:
    return reachable_counts(width, None)[0]


def measure(name: str, count: int) -> Row:
    """The row of one case."""
    model = zoo.build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stock, custom = (
        trace(model.config, model_type=type(model), options=TraceOptions(custom_code=free)) for free in (False, True)
    )
    if stock.parameters() != count_parameters(model):
        raise AssertionError(
            f"{name}: the graph has {stock.parameters()} parameters, the model {count_parameters(model)}"
        )
    program = TracePass(TraceOptions(custom_code=True))(Program.start(copy.deepcopy(model))).program
    attached = AttachPass(LoraOptions(rank=4, alpha=12))(program).program
    differences = [
        shrink_difference(model, graph, kept) for graph in (stock, custom) for kept in plans(graph, count // 2, 2)
    ]
    reload_stock, reload_file = reload_differences(model, [stock, custom])
    exported = onnx_outcome(model, custom)
    if any(not torch.equal(value, before[key]) for key, value in model.state_dict().items()):
        raise AssertionError(f"{name}: the original model was changed")
    return Row(
        name=name,
        family=stock.family,
        model_class=type(model).__name__,
        task=zoo.ZOO[name].task,
        parameters=stock.parameters(),
        units={w.name: [w.size, *(least(graph.width(w.name)) for graph in (stock, custom))] for w in stock.widths},
        attach=attached.history[-1].parity[0].value,
        importance=importance_error(name, custom),
        shrink=max(differences),
        plans=len(differences),
        reload_stock=reload_stock,
        reload_file=reload_file,
        onnx=exported.refused if exported.worst_parity is None else exported.worst_parity,
        genai=exported.no_genai,
        untouched={part: why for part, why in untouched(stock).items() if part in stock.untouched},
    )


def ways(name: str) -> dict[str, Any]:
    """What the defaults of ``lpc.compress`` give, a dtype; an error's text where they fail."""
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        try:
            found[dtype] = asdict(by_default(name, dtype))
        except (LpcError, AssertionError) as error:
            found[dtype] = f"{type(error).__name__}: {error}"
    return found


def kept(fresh: bool) -> dict[str, Any]:
    """What is done: ``rows`` by name, and ``sizes``; begins with the last results."""
    if fresh:
        return {"rows": {}}
    if OUT.is_file():
        found: dict[str, Any] = json.loads(OUT.read_text())
        return found
    results = json.loads(RESULTS.read_text())
    return {**results, "rows": {row["name"]: row for row in results["rows"]}}


def one(name: str, plans_wanted: int, again: list[str]) -> None:
    """Fill in what one family's row lacks, or has to have ``again``."""
    state = kept(fresh=False)
    row = state["rows"].get(name, {})
    default = row.get("default")
    if "row" in again or "attach" not in row:
        row = {**asdict(measure(name, plans_wanted)), "default": default}
    if "default" in again or default is None or any(isinstance(each, str) for each in default.values()):
        row["default"] = ways(name)
    state["rows"][name] = row
    OUT.write_text(json.dumps(state, indent=1))
    said = {dtype: way if isinstance(way, str) else f"{way['export']:.1e}" for dtype, way in row["default"].items()}
    print(f"{name}: shrink {row['shrink']:.1e}, onnx {row['onnx']}, by default {said}", flush=True)


def finish() -> None:
    """Write the results and the page, if every family has its row; say which cells are open."""
    state = kept(fresh=False)
    missing = [name for name in zoo.ZOO if name not in state["rows"]]
    opened = [name for name in zoo.ZOO if not state["rows"].get(name, {}).get("default")]
    if opened:
        print(f"not tried by default yet: {', '.join(opened)}")
    if missing:
        print(f"no row yet for {', '.join(missing)}")
        return
    if "sizes" not in state:
        state["sizes"] = [asdict(size) for size in real_sizes()]
    versions = {package: version(package) for package in PACKAGES}
    results = {"sizes": state["sizes"], "versions": versions, "rows": [state["rows"][name] for name in zoo.ZOO]}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results, json.loads(ALL_MODELS.read_text())))


def main() -> None:
    """Fill in the missing cells, then write the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(zoo.ZOO))
    parser.add_argument("--plans", type=int, default=50)
    parser.add_argument("--again", nargs="*", default=[], choices=("row", "default"), help="cells to measure anew")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    arguments = parser.parse_args()
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(kept(arguments.fresh), indent=1))
    if len(arguments.only) > 1:
        for name in arguments.only:
            words = ["--only", name, "--plans", str(arguments.plans), "--again", *arguments.again]
            subprocess.run([sys.executable, __file__, *words], check=False)
        finish()
        return
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    one(arguments.only[0], arguments.plans, arguments.again)


if __name__ == "__main__":
    main()
