"""What the dense and the pruned model cost in the measures that a budget limited, and how they are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from passes.graph import Cost, Plan, PruningGraph
from passes.options import MEASURES


@dataclass(frozen=True, kw_only=True)
class Limited:
    """What the dense and the pruned model cost in one measure."""

    measure: str
    dense: float
    pruned: float


def limited(graph: PruningGraph, plan: Plan) -> Iterator[Limited]:
    """The costs in measures of the budget that are neither in ``Cost`` nor predicted by a latency model."""
    own = [each.name for each in fields(Cost)]
    for name in plan.budget:
        amount = MEASURES[name].amount if name in MEASURES and name not in own else None
        if amount is not None:
            yield Limited(measure=name, dense=amount(graph, {}), pruned=amount(graph, plan.kept))


def label_of(measure: str) -> str:
    """What a measure is called, of a package that is not installed here its name."""
    return MEASURES[measure].label if measure in MEASURES else measure.replace("_", " ")


def shown(amount: float) -> str:
    """An amount in a table."""
    return f"{amount:,}" if isinstance(amount, int) else f"{amount:,.3f}"
