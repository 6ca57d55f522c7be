"""``export_onnx``: one verified folder for onnxruntime; a decoder's is also for onnxruntime-genai and lm-eval."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.hf import Processor
from exporters.onnx.causal import export_causal
from exporters.onnx.options import GraphKind, OnnxPackage
from exporters.onnx.package import clear
from exporters.onnx.seq2seq import export_seq2seq
from exporters.onnx.single import export_single
from exporters.onnx.verify.probes import vocabulary
from exporters.options import OnnxOptions
from passes.errors import TokenizerError, UnsupportedModelError
from passes.models import Task, task_of

__all__ = ["OnnxOptions", "OnnxPackage", "export_onnx", "kind_of", "needs_tokenizer"]

KINDS: dict[Task, GraphKind] = {Task.CAUSAL_LM: "decoder", Task.SEQ2SEQ_LM: "encoder-decoder"}


def export_onnx(
    model: PreTrainedModel, processor: Processor | None, folder: Path, options: OnnxOptions | None = None
) -> OnnxPackage:
    """Write the ONNX package of a model into ``folder`` and verify it.

    A causal language model becomes ``model.onnx`` with its cache, and ``genai_config.json``; it needs its tokenizer.
    A model that does not generate becomes ``model.onnx`` without a cache; an encoder-decoder ``encoder_model.onnx`` and
    ``decoder_model.onnx``. Beside them lie the weights, ``config.json``, and what ``processor`` (the tokenizer, or an
    image processor) saves. ``model`` is not changed; a half-precision one is exported and verified as its fp32 copy.

    Raises ``UnsupportedModelError`` (no road to ONNX; the message says why), ``TokenizerError``, and
    ``PostconditionError`` when a graph or GenAI does not compute what torch computes; the message names the case, the
    place and the number.
    """
    options, folder = options or OnnxOptions(), Path(folder)
    kind = kind_of(model)
    tokenizer = _tokenizer(model, processor, kind)
    if options.route == "builder" and kind != "decoder":
        raise UnsupportedModelError(
            f"the ONNX graph builder knows only causal language models, not {type(model).__name__}"
        )
    clear(folder)
    reference = fp32_reference(model)
    if kind == "encoder-decoder":
        return export_seq2seq(reference, processor, folder, options)
    if kind == "single":
        return export_single(reference, processor, folder, options)
    assert tokenizer is not None
    return export_causal(reference, tokenizer, folder, options)


def kind_of(model: PreTrainedModel) -> GraphKind:
    """Which graphs a model becomes. Raises ``UnsupportedModelError`` for a class whose task is unknown."""
    return KINDS.get(task_of(model), "single")


def needs_tokenizer(model: PreTrainedModel) -> bool:
    """Whether ``export_onnx`` refuses the model without its tokenizer."""
    return kind_of(model) == "decoder"


def check_tokenizer(model: PreTrainedModel, processor: Processor | None) -> None:
    """Raise ``TokenizerError`` if the model's package needs a tokenizer, and the processor is none."""
    if needs_tokenizer(model) and not isinstance(processor, PreTrainedTokenizerBase):
        raise TokenizerError(
            "an ONNX package needs the tokenizer, and none was found beside the model: "
            'pass tokenizer=... to compress, or leave ONNX out (export=["hf"], --no-onnx)'
        )


def fp32_reference(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself if it is fp32, on CPU and in eval mode; otherwise a copy that is."""
    kinds = {(parameter.dtype, parameter.device.type) for parameter in model.parameters()}
    if kinds == {(torch.float32, "cpu")} and not any(module.training for module in model.modules()):
        return model
    reference: PreTrainedModel = copy.deepcopy(model).to("cpu", torch.float32).eval()
    return reference


def _tokenizer(model: PreTrainedModel, processor: Processor | None, kind: GraphKind) -> PreTrainedTokenizerBase | None:
    """The processor as the model's own tokenizer, or None if it is none. Raises ``TokenizerError``."""
    if not isinstance(processor, PreTrainedTokenizerBase):
        if kind == "decoder":
            raise TokenizerError(f"the package of a {type(model).__name__} needs its tokenizer: give it")
        return None
    if model.main_input_name == "input_ids" and len(processor) > vocabulary(model):
        sizes = f"the tokenizer has {len(processor)} tokens but the model only {vocabulary(model)}"
        raise TokenizerError(f"{sizes}: it is another model's; give the model's own tokenizer")
    return processor
