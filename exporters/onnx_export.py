"""``export_onnx``: one verified folder that onnxruntime, onnxruntime-genai and lm-eval load."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Literal

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from exporters.genai import verify_greedy, write_genai_config
from exporters.onnx_decoder import build_decoder, why_not_builder
from exporters.onnx_graph import GraphBuilder
from exporters.onnx_options import DATA_FILE, MODEL_FILE, OnnxOptions, OnnxPackage
from exporters.onnx_torch import trace_to_onnx
from exporters.onnx_verify import check_interface, verify_onnx
from passes.errors import TokenizerError, UnsupportedModelError

__all__ = ["OnnxOptions", "OnnxPackage", "export_onnx"]

logger = logging.getLogger(__name__)


def export_onnx(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, options: OnnxOptions | None = None
) -> OnnxPackage:
    """Write the ONNX package of a causal language model into ``folder`` and verify it.

    The folder then holds ``model.onnx``, ``model.onnx.data``, ``genai_config.json``, ``config.json``,
    ``generation_config.json`` and the tokenizer. ``model`` is not changed; a half-precision one is exported and
    verified as its fp32 copy.

    Raises ``UnsupportedModelError`` (no road to ONNX), ``TokenizerError``, and ``PostconditionError`` when the graph or
    GenAI does not compute what torch computes; the message names the case, the layer and the number.
    """
    options = options or OnnxOptions()
    _check_tokenizer(model, tokenizer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MODEL_FILE, DATA_FILE):
        (folder / name).unlink(missing_ok=True)
    route = _route(model, options)
    reference = fp32_reference(model)
    parameters = _write_graph(reference, folder / MODEL_FILE, options, route)
    _write_companions(reference, tokenizer, folder, options)
    kv_bytes = check_interface(folder / MODEL_FILE, reference.config.num_hidden_layers)
    parity = verify_onnx(reference, folder / MODEL_FILE, options.tolerance)
    if options.greedy_prompts:
        parity = (*parity, verify_greedy(reference, folder, options))
    return OnnxPackage(
        folder=folder,
        files=tuple(sorted(each.name for each in folder.iterdir() if each.is_file())),
        opset=options.opset,
        dtype=options.dtype,
        route=route,
        parameters=parameters,
        kv_bytes_per_token=kv_bytes,
        parity=parity,
    )


def fp32_reference(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself if it is fp32, on CPU and in eval mode; otherwise a copy that is."""
    kinds = {(parameter.dtype, parameter.device.type) for parameter in model.parameters()}
    if kinds == {(torch.float32, "cpu")} and not any(module.training for module in model.modules()):
        return model
    reference: PreTrainedModel = copy.deepcopy(model).to("cpu", torch.float32).eval()
    return reference


def _check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if len(tokenizer) > model.config.vocab_size:
        sizes = f"the tokenizer has {len(tokenizer)} tokens but the model only {model.config.vocab_size}"
        raise TokenizerError(f"{sizes}: it is another model's; give the model's own tokenizer")


def _route(model: PreTrainedModel, options: OnnxOptions) -> Literal["builder", "torch"]:
    reason = why_not_builder(model)
    if options.route == "builder" and reason is not None:
        raise UnsupportedModelError(f"the ONNX graph builder does not know this model: {reason}; use route='auto'")
    if options.route == "torch" or reason is not None:
        logger.info("exporting through torch.onnx: %s", reason or "as asked")
        return "torch"
    return "builder"


def _write_graph(model: PreTrainedModel, path: Path, options: OnnxOptions, route: Literal["builder", "torch"]) -> int:
    """Write the graph and its weights; return how many weights it holds."""
    if route == "torch":
        exported = model if options.dtype == "float32" else copy.deepcopy(model).to(options.torch_dtype)
        return trace_to_onnx(exported, path, opset=options.opset)
    graph = GraphBuilder(options.torch_dtype)
    decoder = build_decoder(model, graph)
    return graph.save(path, decoder.inputs, decoder.outputs, opset=options.opset, data_file=DATA_FILE)


def _write_companions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, options: OnnxOptions
) -> None:
    """Configs and tokenizer beside the graph."""
    config = copy.deepcopy(model.config)
    config.dtype = options.dtype
    config.save_pretrained(folder)
    generation = model.generation_config or GenerationConfig.from_model_config(config)
    generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_genai_config(model, tokenizer, folder)
