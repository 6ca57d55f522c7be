"""Random budgets on five families: is each met, how nearly, and what is said of those that cannot be.

    python benchmarks/budgets.py [--budgets 200] [--seed 0]

Each budget limits one to three of parameters, MACs, weight bytes and key-value cache bytes, in either layout, at
fractions that also lie outside of what can be reached. Of one that is met: every limit holds, no width can be one
rounded step larger, and the closed-form cost is that of the model which is then built. Of one that is refused: the
smallest model really is beyond a limit.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from lpc.report import table
from lpc.versions import versions
from passes.budget import Solver, best_units
from passes.errors import UnreachableBudgetError
from passes.graph import PruningGraph, count_of
from passes.models import count_parameters
from passes.options import Budget, Layout, Target, TraceOptions
from passes.shrink import build_compact
from passes.trace import trace

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).parent / "out"
FAMILIES = ("llama", "qwen3", "gpt2", "mixtral", "phi3")
MEASURES = ("parameters", "macs", "weight_bytes", "kv_cache_bytes")


@dataclass(frozen=True)
class Row:
    """One budget: what was asked, and ``used``, the largest share of a limit that is used; None where it was refused.

    ``wider_fits``: whether some width could have been one step larger, which must be False.
    """

    family: str
    layout: str
    asked: dict[str, float]
    used: float | None
    wider_fits: bool = False
    cost_is_exact: bool = True


def random_budget(generator: random.Random) -> dict[str, float]:
    """One to three limits, as fractions."""
    chosen = generator.sample(MEASURES, generator.choice((1, 1, 2, 3)))
    return {measure: round(generator.uniform(0.15, 0.98), 4) for measure in chosen}


def run(family: str, seed: int) -> Row:
    """Draw a budget, solve it and check the answer against the model that it gives."""
    zoo = import_module("zoo")  # of tests/, on the path since main
    generator = random.Random(seed)
    model, layout = zoo.build(family), generator.choice(list(Layout))
    asked: dict[str, Any] = random_budget(generator)
    graph = trace(model.config, model_type=type(model), options=TraceOptions(custom_code=layout is Layout.PER_LAYER))
    target = Target(budget=Budget(**asked), layout=layout)
    scores = {d.name: torch.rand(d.size, generator=torch.Generator().manual_seed(seed)) for d in graph.dimensions}
    try:
        solver = Solver.of(target, graph)
    except UnreachableBudgetError as error:
        if not any(word in str(error) for word in ("largest reachable ratio", "Reachable are fractions")):
            raise
        return Row(family, layout, asked, None)
    counts = {name: count_of(amount) for name, amount in solver.kept(scores).items()}
    solver.check(counts)
    used = max(solver.meter.measure(limit.measure, counts) / limit.bound for limit in solver.limits)
    kept = {name: tuple(m.nonzero().flatten().tolist()) for name, m in best_units(graph, scores, counts).items()}
    exact = count_parameters(build_compact(model, graph, kept)) == graph.parameters(counts)
    return Row(family, layout, asked, used, _wider_fits(solver, graph, counts), exact)


def _wider_fits(solver: Solver, graph: PruningGraph, counts: dict[str, int]) -> bool:
    for bundle in solver.bundles:
        wider = [count for count in bundle.counts if count > counts[bundle.dimensions[0].name]]
        one_step = {dimension.name: wider[0] for dimension in bundle.dimensions} if wider else None
        if one_step and solver.meter.fits({**counts, **one_step}, solver.limits):
            return True
    return False


def summary(rows: list[Row]) -> str:
    """A row a family and layout."""
    lines = []
    for family in FAMILIES:
        for layout in Layout:
            own = [row for row in rows if (row.family, row.layout) == (family, layout)]
            met = [row.used for row in own if row.used is not None]
            least, mean = (f"{min(met):.4f}", f"{sum(met) / len(met):.4f}") if met else ("–", "–")
            faults = sum(row.wider_fits or not row.cost_is_exact for row in own)
            lines.append(
                [
                    f"{family}, {layout}",
                    str(len(own)),
                    str(len(met)),
                    str(len(own) - len(met)),
                    least,
                    mean,
                    str(faults),
                ]
            )
    header = ["family, layout", "budgets", "met", "refused", "least share used", "mean share used", "faults"]
    return table(header, lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--budgets", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    transformers_logging.set_verbosity_error()
    rows = [run(FAMILIES[i % len(FAMILIES)], arguments.seed + i) for i in range(arguments.budgets)]
    OUT.mkdir(exist_ok=True)
    values = {"versions": versions(), "rows": [asdict(row) for row in rows]}
    (OUT / "budgets.json").write_text(json.dumps(values, indent=1) + "\n")
    text = summary(rows)
    (OUT / "budgets.md").write_text(text)
    print(text)
    if any(row.wider_fits or not row.cost_is_exact for row in rows):
        sys.exit("a budget was not met as nearly as possible, or a cost was wrong")


if __name__ == "__main__":
    main()
