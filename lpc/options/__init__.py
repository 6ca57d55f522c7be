"""What a user can ask of lpc beside the compiler: data, evaluation, benchmark. Imports no torch."""

from lpc.options.benchmark import BenchmarkOptions
from lpc.options.data import DataOptions
from lpc.options.evaluate import BACKENDS, EvaluateOptions
from lpc.options.instructions import ALPACA, ALPACA_WITH_INPUT, InstructionFormat

__all__ = [
    "ALPACA",
    "ALPACA_WITH_INPUT",
    "BACKENDS",
    "BenchmarkOptions",
    "DataOptions",
    "EvaluateOptions",
    "InstructionFormat",
]
