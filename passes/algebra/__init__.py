"""Linear algebra on matrices alone: least squares, elimination of columns. Knows no model."""

from passes.algebra.elimination import Surgery, damped_factor, elimination_errors
from passes.algebra.least_squares import DOUBLE_COLUMNS, NormalEquations, Solution

__all__ = ["DOUBLE_COLUMNS", "NormalEquations", "Solution", "Surgery", "damped_factor", "elimination_errors"]
