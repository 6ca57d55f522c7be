"""Finding the graph of a model: dependencies, dimensions, residual stream, widths, depth."""

from passes.trace.trace import TracePass, options_for, trace

__all__ = ["TracePass", "options_for", "trace"]
