"""``export_onnx``: one verified folder for onnxruntime; a decoder's is also for onnxruntime-genai and lm-eval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exporters.hf import Processor
from exporters.onnx.causal import export_causal
from exporters.onnx.options import OnnxPackage, settled
from exporters.onnx.package import clear
from exporters.onnx.provenance import Provenance, write_provenance
from exporters.onnx.refusals import check_exportable, kind_of
from exporters.onnx.seq2seq import export_seq2seq
from exporters.onnx.single import export_single
from exporters.options import OnnxOptions
from passes.errors import OptionError
from passes.graph import Plan
from passes.models import Parity, evaluation_mode

__all__ = ["OnnxOptions", "OnnxPackage", "export_onnx", "export_packages", "parities"]


def export_onnx(
    model: PreTrainedModel,
    processor: Processor | None,
    folder: Path,
    options: OnnxOptions | None = None,
    plan: Plan | None = None,
) -> OnnxPackage:
    """Write the ONNX package of a model into ``folder`` and verify it.

    A causal language model becomes ``model.onnx`` with its cache, and ``genai_config.json``; it needs its tokenizer.
    A model that does not generate becomes ``model.onnx`` without a cache; an encoder-decoder ``encoder_model.onnx`` and
    ``decoder_model.onnx``. Beside them lie the weights, ``config.json``, and what ``processor`` (the tokenizer, or an
    image processor) saves. ``model`` is afterwards as it was; a half-precision one is exported and verified in
    fp32. Who made the package, of which model and by which ``plan``, is said in it, with the hash of every file.

    Raises ``UnsupportedModelError`` (no route to ONNX; the message says why), ``TokenizerError``, and
    ``PostconditionError`` when a graph or GenAI does not compute what torch computes; the message names the case, the
    place and the number.
    """
    options, folder = options or OnnxOptions(), Path(folder)
    check_exportable(model, processor, options)
    asked = settled(options, model)
    if len(asked) > 1:
        raise OptionError(f"one package has one precision, got {', '.join(options.precision)}: see export_packages")
    options, provenance = asked[0], Provenance.of(model, plan)
    clear(folder)
    with in_fp32(model):
        package = _export(model, processor, folder, options)
    return write_provenance(package, provenance)


def _export(model: PreTrainedModel, processor: Processor | None, folder: Path, options: OnnxOptions) -> OnnxPackage:
    kind = kind_of(model)
    if kind == "encoder-decoder":
        return export_seq2seq(model, processor, folder, options)
    if kind == "single":
        return export_single(model, processor, folder, options)
    assert isinstance(processor, PreTrainedTokenizerBase)
    return export_causal(model, processor, folder, options)


def export_packages(
    model: PreTrainedModel,
    processor: Processor | None,
    folder: Path,
    options: OnnxOptions | None = None,
    plan: Plan | None = None,
) -> tuple[OnnxPackage, ...]:
    """As ``export_onnx``, for one precision or several, each of which then has a folder of its name in ``folder``."""
    options = options or OnnxOptions()
    asked = settled(options, model)
    if len(asked) == 1:
        return (export_onnx(model, processor, folder, asked[0], plan),)
    return tuple(export_onnx(model, processor, Path(folder) / each.precision[0], each, plan) for each in asked)


def parities(packages: Sequence[OnnxPackage]) -> tuple[Parity, ...]:
    """What was compared, of several packages with the precision in each name."""
    if len(packages) == 1:
        return packages[0].parity
    return tuple(replace(each, name=f"{of.precision}: {each.name}") for of in packages for each in of.parity)


@contextmanager
def in_fp32(model: PreTrainedModel) -> Iterator[None]:
    """The model in fp32, on the CPU and in evaluation mode inside the block; afterwards as it was, bit for bit.

    Its tensors are converted one at a time, so that there is no second model.
    """
    held = [(tensor, tensor.dtype, tensor.device) for tensor in (*model.parameters(), *model.buffers())]
    wide = {id(tensor): tensor.data for tensor, dtype, _ in held if dtype == torch.float64}
    try:
        with evaluation_mode(model):
            for tensor, dtype, _ in held:
                tensor.data = tensor.data.to("cpu", torch.float32 if dtype.is_floating_point else dtype)
            yield
    finally:
        for tensor, dtype, device in held:
            tensor.data = wide[id(tensor)] if id(tensor) in wide else tensor.data.to(device, dtype)
