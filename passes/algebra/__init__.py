"""Linear algebra on matrices alone: least squares, elimination of columns. Knows no model."""

from passes.algebra.cholesky import damped_factor
from passes.algebra.elimination import Surgery, elimination_errors, work_bytes
from passes.algebra.gram import BLOCK, Gram
from passes.algebra.least_squares import NormalEquations, Solution
from passes.algebra.low_rank import Way, Worn, low_rank_sums, stacked, triton_works, windows
from passes.algebra.products import product, sums_in
from passes.algebra.transfer import Answer, on_cpu

__all__ = [
    "BLOCK",
    "Answer",
    "Gram",
    "NormalEquations",
    "Solution",
    "Surgery",
    "Way",
    "Worn",
    "damped_factor",
    "elimination_errors",
    "low_rank_sums",
    "on_cpu",
    "product",
    "stacked",
    "sums_in",
    "triton_works",
    "windows",
    "work_bytes",
]
