"""The ONNX package of a decoder that is never loaded: weights go through one at a time, and it runs a layer at a time.

The files are those of ``export_onnx``, byte for byte. What is not done is what needs the whole graph in memory: GenAI
does not run it, and its chunks are not compared.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from exporters.files import MODEL_FILE
from exporters.hf import Processor
from exporters.onnx.causal import why_plain
from exporters.onnx.decoder import DecoderGraph, build_decoder, why_not_builder
from exporters.onnx.genai import write_genai_config
from exporters.onnx.graph import GraphBuilder
from exporters.onnx.options import OnnxPackage, input_names, precision_of, present_names, settled
from exporters.onnx.package import clear, finish, write_companions
from exporters.onnx.pieces import Pieces
from exporters.onnx.precision import Precision
from exporters.onnx.provenance import Provenance, write_provenance
from exporters.onnx.refusals import check_exportable, kind_of
from exporters.onnx.rewrite import save
from exporters.onnx.session import ATTENTION_ENTRY, check_graph
from exporters.onnx.torch_caches import flat_shapes
from exporters.onnx.verify.causal import Answer, ProbeStep, padded_step, torch_answer, verify_pieces
from exporters.options import GROUP_QUERY, OnnxOptions
from passes.errors import UnsupportedModelError
from passes.graph import Plan
from passes.models import Fingerprint, Parity, Unloaded, check_finite_tensor

logger = logging.getLogger(__name__)


def why_not_streamed(model: PreTrainedModel, options: OnnxOptions) -> str | None:
    """Why the package of a model (on the meta device) needs it whole; None if it can be written a tensor at a time."""
    if kind_of(model) != "decoder":
        return "it is no causal language model"
    if options.route == "torch":
        return "torch.onnx traces it, as asked"
    if options.calibration is not None:
        return "a calibration text goes through the whole graph"
    for each in settled(options, model):
        precision = precision_of(each)
        if precision.writer is not None and precision.streamer is None:
            return f"the precision {precision.name} has a writer for whole files"
    return why_not_builder(model)


def export_streamed(
    source: Unloaded,
    tokenizer: Processor | None,
    folder: Path,
    options: OnnxOptions | None = None,
    plan: Plan | None = None,
) -> tuple[OnnxPackage, ...]:
    """As ``export_packages``, of a causal language model that is not loaded.

    Compared with torch, layer after layer on a batch padded on both sides, and a token behind it: the graph in its
    float type, then as it was written. Raises what ``export_onnx`` raises, UnsupportedModelError also where the model
    has to be loaded, and ModelError for weights that are not finite. ``source`` is used up.
    """
    options, folder, model = options or OnnxOptions(), Path(folder), source.model
    check_exportable(model, tokenizer, options)
    why = why_not_streamed(model, options)
    if why is not None:
        raise UnsupportedModelError(f"this ONNX package cannot be written a tensor at a time: {why}")
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    streamed = _Streamed(source, tokenizer, flat_shapes(model), plan)
    rotary: Any = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=model.config)  # with numbers
    asked = settled(options, model)
    places = [folder / each.precision[0] if len(asked) > 1 else folder for each in asked]
    return tuple(streamed.write(place, each) for place, each in zip(places, asked, strict=True))


@dataclass(frozen=True)
class _Streamed:
    """A model on the meta device, but for the constants that it rotates by, and the shapes of its cache."""

    source: Unloaded
    tokenizer: PreTrainedTokenizerBase
    shapes: tuple[tuple[int, int], ...]
    plan: Plan | None

    def write(self, folder: Path, options: OnnxOptions) -> OnnxPackage:
        """One package."""
        model, precision, path = self.source.model, precision_of(options), folder / MODEL_FILE
        clear(folder)
        plain = why_plain(model, options, "builder")
        building = _Building(self.source, options, plain is None)
        parity: list[Parity] = []
        if precision.first is not None:
            exact, decoder, _ = building.of(precision.first)
            parity += self._compared(Pieces(exact, decoder.layers, folder), precision.first)
            assert precision.streamer is not None
            parity += precision.streamer(lambda: building.of(precision)[0], path, options)
        _, decoder, weights = building.of(precision)
        if precision.first is None:
            save(building.of(precision)[0], path)
        names = input_names(len(self.shapes) // 2, positions=plain is not None)
        check_graph(path, names, ["logits", *present_names(len(self.shapes) // 2)])
        after = self._compared(Pieces(ir.load(path), decoder.layers, folder), precision)
        parity += [_worst(precision, after)] if precision.first is not None else after
        self._write_beside(folder, options, share=plain is None)
        package = finish(
            folder,
            options,
            kind="decoder",
            route="builder",
            plain_attention=plain,
            parameters=weights,
            kv_bytes_per_token=sum(heads * size for heads, size in self.shapes) * precision.torch_dtype.itemsize,
            no_genai=None,
            parity=tuple(parity),
        )
        logger.warning("written a tensor at a time: onnxruntime-genai was not started on it")
        return write_provenance(package, self.provenance)

    @cached_property
    def provenance(self) -> Provenance:
        """That of the model, every parameter of which is read, and finite."""
        whole = Fingerprint(self.source.model.config)
        for name, tensor in self.source.tensors():
            check_finite_tensor(name, tensor)
            whole.add(name, tensor)
        return Provenance.named(whole.hexdigest(), self.plan)

    @cached_property
    def asked(self) -> tuple[ProbeStep, Answer]:
        """What is compared: a padded batch, and what torch answers, one module's weights at a time."""
        step = padded_step(self.source.model)
        with self.source.computing(torch.float32) as model:
            return step, torch_answer(model, step, positions=True)

    def _compared(self, graph: Pieces, precision: Precision) -> list[Parity]:
        return list(verify_pieces(graph, *self.asked, precision.tolerance))

    def _write_beside(self, folder: Path, options: OnnxOptions, *, share: bool) -> None:
        model = self.source.model
        write_companions(model, self.tokenizer, folder, options)
        generation = model.generation_config or GenerationConfig.from_model_config(copy.deepcopy(model.config))
        generation.save_pretrained(folder)
        write_genai_config(model, self.tokenizer, folder, self.shapes, positions=not share, share=share)


@dataclass(frozen=True)
class _Building:
    """Graphs of one model; each is a new one, since a graph belongs to whom it is written by."""

    source: Unloaded
    options: OnnxOptions
    group_query: bool

    def of(self, precision: Precision) -> tuple[ir.Model, DecoderGraph, int]:
        """The graph in the float type of ``precision``, what its layers are, and the number of its weights."""
        graph = GraphBuilder(precision, self.source.read)
        decoder = build_decoder(self.source.model, graph, group_query=self.group_query)
        said = {ATTENTION_ENTRY: GROUP_QUERY} if self.group_query else None
        model = graph.model(decoder.inputs, decoder.outputs, opset=self.options.opset, metadata=said)
        return model, decoder, graph.weights


def _worst(precision: Precision, found: list[Parity]) -> Parity:
    """As ``stages.finished`` says it of a graph that rounds."""
    return Parity(f"{precision.name} against torch in fp32", max(each.value for each in found), precision.tolerance)
