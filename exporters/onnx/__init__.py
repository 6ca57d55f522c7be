"""The ONNX package: graphs, the KV cache in them, GenAI's files, verification against torch."""

from exporters.onnx.cache import takes_positions
from exporters.onnx.calls import Call, Graph, OnnxFolder, call_grid, forward_grid
from exporters.onnx.causal import trace_decoder
from exporters.onnx.decoder import BUILDER_FAMILIES, build_decoder, why_not_builder
from exporters.onnx.export import export_onnx, needs_tokenizer
from exporters.onnx.export_pass import ExportPass, ExportReport
from exporters.onnx.graph import GraphBuilder
from exporters.onnx.options import DATA_FILE, MAX_OPSET, DType, OnnxOptions, OnnxPackage
from exporters.onnx.single import trace_single

__all__ = [
    "BUILDER_FAMILIES",
    "DATA_FILE",
    "MAX_OPSET",
    "Call",
    "DType",
    "ExportPass",
    "ExportReport",
    "Graph",
    "GraphBuilder",
    "OnnxFolder",
    "OnnxOptions",
    "OnnxPackage",
    "build_decoder",
    "call_grid",
    "export_onnx",
    "forward_grid",
    "needs_tokenizer",
    "takes_positions",
    "trace_decoder",
    "trace_single",
    "why_not_builder",
]
