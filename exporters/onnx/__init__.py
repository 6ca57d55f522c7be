"""The ONNX package: graphs, the KV cache in them, GenAI's files, verification against torch."""

from exporters.onnx.causal import trace_decoder
from exporters.onnx.decoder import build_decoder, has_builder, why_not_builder
from exporters.onnx.export import export_onnx, export_packages, parities
from exporters.onnx.export_pass import ExportPass, ExportReport, WrittenPackage
from exporters.onnx.graph import GraphBuilder
from exporters.onnx.group_query import why_not_group_query
from exporters.onnx.options import BATCH, DATA_FILE, OnnxPackage, settled
from exporters.onnx.precision import FLOAT32, PRECISIONS, Precision, register_precision
from exporters.onnx.provenance import Provenance, graphs_in, plan_digest, read_provenance
from exporters.onnx.recheck import check_configuration, check_graphs, check_parity
from exporters.onnx.refusals import check_exportable, needs_tokenizer
from exporters.onnx.session import torch_type
from exporters.onnx.single import trace_single
from exporters.onnx.streamed import export_streamed, why_not_streamed
from exporters.onnx.torch_caches import takes_positions

__all__ = [
    "BATCH",
    "DATA_FILE",
    "FLOAT32",
    "PRECISIONS",
    "ExportPass",
    "ExportReport",
    "GraphBuilder",
    "OnnxPackage",
    "Precision",
    "Provenance",
    "WrittenPackage",
    "build_decoder",
    "check_configuration",
    "check_exportable",
    "check_graphs",
    "check_parity",
    "export_onnx",
    "export_packages",
    "export_streamed",
    "graphs_in",
    "has_builder",
    "needs_tokenizer",
    "parities",
    "plan_digest",
    "read_provenance",
    "register_precision",
    "settled",
    "takes_positions",
    "torch_type",
    "trace_decoder",
    "trace_single",
    "why_not_builder",
    "why_not_group_query",
    "why_not_streamed",
]
