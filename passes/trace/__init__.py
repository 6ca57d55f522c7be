"""Finding the graph of a model: dependencies, dimensions, residual stream, widths, depth."""

from passes.trace.trace import TraceOptions, TracePass, options_for, trace

__all__ = ["TraceOptions", "TracePass", "options_for", "trace"]
