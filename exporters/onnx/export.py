"""``export_onnx``: one verified folder for onnxruntime; a decoder's is also for onnxruntime-genai and lm-eval."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.hf import Processor
from exporters.onnx.causal import export_causal
from exporters.onnx.options import OnnxPackage
from exporters.onnx.package import clear
from exporters.onnx.refusals import check_exportable, kind_of
from exporters.onnx.seq2seq import export_seq2seq
from exporters.onnx.single import export_single
from exporters.options import OnnxOptions

__all__ = ["OnnxOptions", "OnnxPackage", "export_onnx"]


def export_onnx(
    model: PreTrainedModel, processor: Processor | None, folder: Path, options: OnnxOptions | None = None
) -> OnnxPackage:
    """Write the ONNX package of a model into ``folder`` and verify it.

    A causal language model becomes ``model.onnx`` with its cache, and ``genai_config.json``; it needs its tokenizer.
    A model that does not generate becomes ``model.onnx`` without a cache; an encoder-decoder ``encoder_model.onnx`` and
    ``decoder_model.onnx``. Beside them lie the weights, ``config.json``, and what ``processor`` (the tokenizer, or an
    image processor) saves. ``model`` is not changed; a half-precision one is exported and verified as its fp32 copy.

    Raises ``UnsupportedModelError`` (no route to ONNX; the message says why), ``TokenizerError``, and
    ``PostconditionError`` when a graph or GenAI does not compute what torch computes; the message names the case, the
    place and the number.
    """
    options, folder = options or OnnxOptions(), Path(folder)
    check_exportable(model, processor, options)
    kind = kind_of(model)
    clear(folder)
    reference = fp32_reference(model)
    if kind == "encoder-decoder":
        return export_seq2seq(reference, processor, folder, options)
    if kind == "single":
        return export_single(reference, processor, folder, options)
    assert isinstance(processor, PreTrainedTokenizerBase)
    return export_causal(reference, processor, folder, options)


def fp32_reference(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself if it is fp32, on CPU and in eval mode; otherwise a copy that is."""
    kinds = {(parameter.dtype, parameter.device.type) for parameter in model.parameters()}
    if kinds == {(torch.float32, "cpu")} and not any(module.training for module in model.modules()):
        return model
    reference: PreTrainedModel = copy.deepcopy(model).to("cpu", torch.float32).eval()
    return reference
