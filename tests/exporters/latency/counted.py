"""A timer whose seconds are weights, and the models that it times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from transformers import PreTrainedModel

from exporters.calls import OnnxFolder
from exporters.files import MODEL_FILE
from exporters.latency.timing import WorkloadStep
from exporters.onnx import DATA_FILE, GraphBuilder, build_decoder
from passes.graph import PruningGraph
from passes.options import TraceOptions, Workload
from passes.trace import trace

READ = Workload(prefill=4, decode=0)


FREE = TraceOptions(custom_code=True)


FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def count_weights(folder: OnnxFolder) -> int:
    graph = onnx.load(str(folder.path), load_external_data=False).graph
    return sum(math.prod(each.dims) for each in graph.initializer if each.data_type in FLOATS)


def weights(folder: OnnxFolder, steps: Sequence[WorkloadStep], threads: int) -> list[list[float]]:
    """A timer by which a call takes a second a weight."""
    return [[float(count_weights(folder))] for _ in steps]


def traced(model: PreTrainedModel, options: TraceOptions = FREE) -> PruningGraph:
    return trace(model.config, torch.float32, model_type=type(model), options=options)


def exported(model: PreTrainedModel, folder: Path) -> OnnxFolder:
    builder = GraphBuilder()
    decoder = build_decoder(model, builder)
    builder.save(folder / MODEL_FILE, decoder.inputs, decoder.outputs, opset=23, data_file=DATA_FILE)
    return OnnxFolder.find(folder)
