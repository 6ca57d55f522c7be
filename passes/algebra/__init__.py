"""Linear algebra on matrices alone: least squares, elimination of columns. Knows no model."""

from passes.algebra.cholesky import damped_factor
from passes.algebra.elimination import Surgery, elimination_errors, work_bytes
from passes.algebra.least_squares import NormalEquations, Solution
from passes.algebra.products import DOUBLE_COLUMNS, product
from passes.algebra.transfer import on_cpu

__all__ = [
    "DOUBLE_COLUMNS",
    "NormalEquations",
    "Solution",
    "Surgery",
    "damped_factor",
    "elimination_errors",
    "on_cpu",
    "product",
    "work_bytes",
]
