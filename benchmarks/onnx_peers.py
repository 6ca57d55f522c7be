"""The same model by others: onnxruntime-genai's builder, transformers' own exporter, torch.onnx.export."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import torch
from transformers import AutoModelForCausalLM

from exporters.options import OnnxOptions
from lpc import export

CACHE = re.compile(r"(input|output)\.past_key_values\.layers\.(\d+)\.(key|value)s")
PAST = {"input": "past_key_values", "output": "present"}


def built(model: Path, folder: Path, precision: str) -> Path:
    """The builder's package of a model, as it makes it by default for the CPU."""
    if not (folder / "model.onnx").is_file():
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", model, "-o", folder, "-e", "cpu"]
        subprocess.run([*map(str, command), "-p", precision, "-c", str(folder) + ".cache"], check=True)
    return folder


def exported(model: Path, folder: Path, options: OnnxOptions) -> Path:
    """lpc's package of a model."""
    if not (folder / "model.onnx").is_file():
        export(model, folder, options)
    return folder


def by_torch(model: Path, folder: Path) -> Path:
    """What ``torch.onnx.export`` writes of it in fp32, by lpc's route for models that its own builder does not know."""
    return exported(model, folder, OnnxOptions(precision=("fp32",), route="torch"))


def by_transformers(model: Path, folder: Path) -> Path:
    """What transformers' exporter writes in fp32, fused for the CPU; its one graph for prompts and tokens.

    Its caches have other names, and sizes as text: they are given what all others have.
    """
    if not (folder / "model.onnx").is_file():
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

        source = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])  # all ones would leave the mask out of the graph
        ids = torch.arange(10, 20).reshape(mask.shape)
        exporter, config = OnnxExporter(), OnnxConfig(dynamic=True, ort_fusions="cpu")
        inputs = {"input_ids": ids, "attention_mask": mask}
        exporter.export_for_generation(source, inputs, config, multi_token_decode=True).save_pretrained(folder)
        graph = ir.load(folder / "decode.onnx")
        for value in (*graph.graph.inputs, *graph.graph.outputs):
            found = CACHE.fullmatch(str(value.name))
            if found:
                value.name = f"{PAST[found[1]]}.{found[2]}.{found[3]}"
                value.shape = ir.Shape(_size(each) for each in value.shape or ())
        ir.save(graph, folder / "model.onnx", external_data="model.onnx.data")
    return folder


def _size(said: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    """A number where a dimension is one, said as such or as its name."""
    name = str(said if isinstance(said, int) else said.value)
    return int(name) if name.isdecimal() else said
