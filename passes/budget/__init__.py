"""From a target to counts: budgets and their measures, the solver, both layouts."""

from passes.budget.budget import Budget, LatencyModel, Workload
from passes.budget.bundles import default_multiple, reachable_counts
from passes.budget.solver import Scores, Solver, best_units, largest_ratio
from passes.budget.target import Layout, Target

__all__ = [
    "Budget",
    "LatencyModel",
    "Layout",
    "Scores",
    "Solver",
    "Target",
    "Workload",
    "best_units",
    "default_multiple",
    "largest_ratio",
    "reachable_counts",
]
