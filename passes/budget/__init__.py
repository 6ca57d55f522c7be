"""From a target to counts: budgets and their measures, the solver, both layouts."""

from passes.budget.budget import Budget, LatencyModel, Workload
from passes.budget.bundles import default_multiple, reachable_counts
from passes.budget.measures import BYTES, COUNTS, MEASURES, SECONDS, Measure, register_measure
from passes.budget.solver import Scores, Solver, best_units, largest_ratio
from passes.budget.target import Layout, Target

__all__ = [
    "BYTES",
    "COUNTS",
    "MEASURES",
    "SECONDS",
    "Budget",
    "LatencyModel",
    "Layout",
    "Measure",
    "Scores",
    "Solver",
    "Target",
    "Workload",
    "best_units",
    "default_multiple",
    "largest_ratio",
    "reachable_counts",
    "register_measure",
]
