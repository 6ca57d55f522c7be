"""Calls of an ONNX graph on disk: what they are fed, their times, load time and memory. Needs no torch."""

from exporters.calls.calls import Call, Graph, OnnxFolder, call_grid, element_type, forward_grid

__all__ = ["Call", "Graph", "OnnxFolder", "call_grid", "element_type", "forward_grid"]
