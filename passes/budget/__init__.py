"""From a target to counts: what a choice costs, the solver, both layouts."""

from passes.budget.latency import LatencyModel
from passes.budget.multiples import default_multiple, multiple_of, reachable_counts
from passes.budget.solver import Scores, Solver, best_units, largest_ratio

__all__ = [
    "LatencyModel",
    "Scores",
    "Solver",
    "best_units",
    "default_multiple",
    "largest_ratio",
    "multiple_of",
    "reachable_counts",
]
