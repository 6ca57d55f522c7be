"""How fast an ONNX package is: timed calls, side by side."""

from lpc.speed.result import Benchmark, Run
from lpc.speed.run import BENCHMARK_FILE, benchmark

__all__ = ["BENCHMARK_FILE", "Benchmark", "Run", "benchmark"]
