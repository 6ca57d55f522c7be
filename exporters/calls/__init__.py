"""Calls of an ONNX graph on disk: what they are fed, their times, load time and memory. Needs no torch."""

from exporters.calls.calls import GROUP_QUERY_NODE, Call, Graph, OnnxFolder, call_grid, element_type, forward_grid
from exporters.calls.providers import provider_named, providers

__all__ = [
    "GROUP_QUERY_NODE",
    "Call",
    "Graph",
    "OnnxFolder",
    "call_grid",
    "element_type",
    "forward_grid",
    "provider_named",
    "providers",
]
