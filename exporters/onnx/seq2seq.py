"""An encoder-decoder as two graphs: the encoder with the cross-attention keys, and the decoder with its cache.

Names follow optimum (``encoder_model.onnx``, ``decoder_model.onnx``, ``past_key_values.0.decoder.key``); the encoder
graph gives the cross-attention cache as ``present.0.encoder.key``, so one decoder graph does the first and every later
step, and the cross-attention projections run once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers import EncoderDecoderCache, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from exporters.files import DECODER_FILE, ENCODER_FILE
from exporters.hf import Processor
from exporters.onnx.options import (
    BATCH,
    ENCODER_SEQUENCE,
    PAST,
    SEQUENCE,
    OnnxPackage,
    cast,
    cross_names,
    precision_of,
    seq2seq_past_names,
    seq2seq_present_names,
)
from exporters.onnx.package import finish, write_companions
from exporters.onnx.precision import Precision
from exporters.onnx.session import OnnxModel, open_checked
from exporters.onnx.stages import finished
from exporters.onnx.torch_caches import RUN_ERRORS, cache_tensors, fill_cross_cache, plain_shapes
from exporters.onnx.torch_route import Tracing, trace_to_onnx
from exporters.onnx.verify.seq2seq import verify_decoder, verify_encoder, verify_generation
from exporters.options import OnnxOptions
from passes.errors import UnsupportedModelError
from passes.models import Parity, reason, vendor

NO_GENAI = "onnxruntime-genai serves no text-to-text encoder-decoder"
SAMPLE_BATCH, SAMPLE_TOKENS, SAMPLE_PAST, SAMPLE_TEXT = 2, 3, 4, 5


class TracedEncoder(nn.Module):
    """``(input_ids, attention_mask) -> (last_hidden_state, cross-attention key and value of each decoder layer)``."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Shapes: (batch, tokens) in, (batch, tokens, hidden) and (batch, heads, tokens, head_dim) out."""
        model: Any = self.model
        hidden = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        cache = fill_cross_cache((), ())
        model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=attention_mask,
            decoder_input_ids=input_ids[:, :1],  # any token: only the cross-attention's keys and values are kept
            use_cache=True,
            **vendor.with_cache(model, cache),
        )
        return (hidden, *cache_tensors(cache.cross_attention_cache))


class TracedDecoder(nn.Module):
    """``(input_ids, encoder_attention_mask, *past) -> (logits, *present)``.

    ``past`` holds four tensors a layer: own key and value (batch, heads, past, head_dim), and the encoder's.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, encoder_attention_mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Logits (batch, new tokens, vocabulary), and own key and value of each layer with the new tokens appended."""
        own = [tensor for layer in range(0, len(past), 4) for tensor in past[layer : layer + 2]]
        cross = [tensor for layer in range(0, len(past), 4) for tensor in past[layer + 2 : layer + 4]]
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=cross[0][:, 0]),  # only its length is read
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            use_cache=True,
            **vendor.with_cache(self.model, fill_cross_cache(own, cross)),
        )
        return (output.logits, *cache_tensors(vendor.cache_of(output).self_attention_cache))


def export_seq2seq(
    model: PreTrainedModel, processor: Processor | None, folder: Path, options: OnnxOptions
) -> OnnxPackage:
    """Write and verify the package of an encoder-decoder that is fp32, on CPU and in eval mode.

    Raises ``UnsupportedModelError`` if its cache is not two plain lists of keys and values, or it cannot be traced.
    """
    exported = cast(options, model)
    sample = cached_sample(exported)
    layers = len(sample.past) // 4
    encoder, decoder = folder / ENCODER_FILE, folder / DECODER_FILE
    parameters = trace_to_onnx(exported, TracedEncoder(exported), _encoder(sample), encoder, opset=options.opset)
    parameters += trace_to_onnx(exported, TracedDecoder(exported), _decoder(sample), decoder, opset=options.opset)
    del exported  # a copy, if the graphs are in half precision
    write_companions(model, processor, folder, options)
    generation = model.generation_config or GenerationConfig.from_model_config(model.config)
    generation.save_pretrained(folder)
    pasts = seq2seq_past_names(layers)
    kv_bytes = 0

    def verify(precision: Precision) -> tuple[Parity, ...]:
        nonlocal kv_bytes
        encoding, decoding = _open(folder, layers)
        kv_bytes = decoding.bytes_per_token([name for name in pasts if ".decoder." in name])
        return _verify(model, encoding, decoding, options, precision)

    parity = finished(options, verify, encoder, decoder)
    return finish(
        folder,
        options,
        kind="encoder-decoder",
        parameters=parameters,
        kv_bytes_per_token=kv_bytes,
        parity=parity,
        no_genai=NO_GENAI,
    )


def verify_seq2seq(model: PreTrainedModel, folder: Path, options: OnnxOptions) -> tuple[Parity, ...]:
    """The graphs of a written package against torch. Raises ``PostconditionError``."""
    return _verify(model, *_open(folder, len(cached_sample(model).past) // 4), options, precision_of(options))


def _open(folder: Path, layers: int) -> tuple[OnnxModel, OnnxModel]:
    outputs = ["last_hidden_state", *cross_names(layers)]
    encoder = open_checked(folder / ENCODER_FILE, ["input_ids", "attention_mask"], outputs)
    inputs = ["input_ids", "encoder_attention_mask", *seq2seq_past_names(layers)]
    return encoder, open_checked(folder / DECODER_FILE, inputs, ["logits", *seq2seq_present_names(layers)])


def _verify(
    model: PreTrainedModel, encoder: OnnxModel, decoder: OnnxModel, options: OnnxOptions, precision: Precision
) -> tuple[Parity, ...]:
    """What is said token by token must be torch's, but for a precision that was written in another one first."""
    parity = verify_encoder(model, encoder, precision.tolerance)
    parity += verify_decoder(model, decoder, precision.tolerance)
    if options.greedy_prompts and precision.first is None:
        parity += (verify_generation(model, encoder, decoder, replace(options, precision=(precision.name,))),)
    return parity


@dataclass(frozen=True, kw_only=True)
class CachedSample:
    """Inputs to trace both graphs with, and the caches of a start: own and cross ones in turn, a layer each."""

    text: torch.Tensor
    mask: torch.Tensor
    tokens: torch.Tensor
    past: tuple[torch.Tensor, ...]


@torch.no_grad()
def cached_sample(model: PreTrainedModel) -> CachedSample:
    """Inputs to trace both graphs with; one row is padded."""
    text = torch.ones(SAMPLE_BATCH, SAMPLE_TEXT, dtype=torch.int64)
    mask = torch.ones_like(text)
    mask[0, -1] = 0
    start = torch.ones(SAMPLE_BATCH, SAMPLE_PAST, dtype=torch.int64)
    cache = fill_cross_cache((), ())
    try:
        given = vendor.with_cache(model, cache)
        returned: Any = vendor.cache_of(
            model(input_ids=text, attention_mask=mask, decoder_input_ids=start, use_cache=True, **given)
        )
    except RUN_ERRORS as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run with a plain cache: {reason(error)}"
        ) from error
    if type(returned) is not EncoderDecoderCache:
        raise UnsupportedModelError(f"{type(model).__name__} keeps {type(returned).__name__}, not two plain caches")
    sides = (returned.self_attention_cache, returned.cross_attention_cache)
    for each in sides:
        plain_shapes(model, each)
    own, cross = (cache_tensors(each) for each in sides)
    return CachedSample(text=text, mask=mask, tokens=start[:, :SAMPLE_TOKENS].clone(), past=interleave(own, cross))


def interleave(own: tuple[torch.Tensor, ...], cross: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Key and value of the decoder's own and of the cross-attention cache, layer by layer."""
    layers = range(0, len(cross), 2)
    return tuple(each for index in layers for each in (*own[index : index + 2], *cross[index : index + 2]))


def _encoder(sample: CachedSample) -> Tracing:
    text = {0: Dim(BATCH), 1: Dim(ENCODER_SEQUENCE)}
    return Tracing(
        sample=(sample.text, sample.mask),
        inputs=("input_ids", "attention_mask"),
        outputs=("last_hidden_state", *cross_names(len(sample.past) // 4)),
        dynamic=(text, text),
    )


def _decoder(sample: CachedSample) -> Tracing:
    layers = len(sample.past) // 4
    own, cross = {0: Dim(BATCH), 2: Dim(PAST)}, {0: Dim(BATCH), 2: Dim(ENCODER_SEQUENCE)}
    pasts = tuple(dict(each) for _ in range(layers) for each in (own, own, cross, cross))
    tokens, mask = {0: Dim(BATCH), 1: Dim(SEQUENCE)}, {0: Dim(BATCH), 1: Dim(ENCODER_SEQUENCE)}
    return Tracing(
        sample=(sample.tokens, sample.mask, *sample.past),
        inputs=("input_ids", "encoder_attention_mask", *seq2seq_past_names(layers)),
        outputs=("logits", *seq2seq_present_names(layers)),
        dynamic=(tokens, mask, pasts),
    )
