"""Do the two graphs of an encoder-decoder compute what torch computes, and generate what ``generate`` generates?"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from exporters.onnx.greedy import greedy_gap, require_greedy, torch_greedy
from exporters.onnx.options import precision_of
from exporters.onnx.session import OnnxModel
from exporters.onnx.torch_caches import cache_tensors, fill_cross_cache
from exporters.onnx.verify.parity import require_parity
from exporters.onnx.verify.probes import padded, probe_ids, probe_length
from exporters.options import OnnxOptions
from passes.models import Parity, vendor

Tensors = dict[str, torch.Tensor]


@torch.no_grad()
def verify_encoder(model: PreTrainedModel, encoder: OnnxModel, tolerance: float) -> tuple[Parity, ...]:
    """The encoder graph against torch where the mask is 1. Raises ``PostconditionError``."""
    ids = probe_ids(model, 3, probe_length(model))
    parities = []
    for case, text, mask in (
        ("padding", ids, padded(ids, left=False)),
        ("one token", ids[:1, :1], torch.ones_like(ids[:1, :1])),
    ):
        feeds = {"input_ids": text, "attention_mask": mask}
        expected = torch_encoding(model, feeds)
        rows = dict.fromkeys(expected, mask.bool())
        parities.append(require_parity(f"onnx encoder, {case}", encoder(feeds), expected, rows, tolerance))
    return tuple(parities)


@torch.no_grad()
def verify_decoder(model: PreTrainedModel, decoder: OnnxModel, tolerance: float) -> tuple[Parity, ...]:
    """The decoder graph against torch: one token and many on an empty past, then on a past, the text padded."""
    text, tokens = probe_ids(model, 3, probe_length(model)), probe_ids(model, 4, 7)[1:]
    mask = padded(text, left=False)
    encoding = torch_encoding(model, {"input_ids": text, "attention_mask": mask})
    cross = {_past(name): value for name, value in encoding.items() if name.startswith("present")}
    names = [each.name for each in decoder.inputs if ".decoder." in each.name]
    parities = []
    past = decoder.empty(names, len(text))
    for case, new in (("first token", tokens[:, :1]), ("more tokens", tokens[:, 1:6]), ("decode", tokens[:, 6:])):
        expected = _torch_step(model, new, mask, past, cross)
        feeds = {"input_ids": new, "encoder_attention_mask": mask, **past, **cross}
        parities.append(require_parity(f"onnx decoder, {case}", decoder(feeds), expected, {}, tolerance))
        past = {_past(name): value for name, value in expected.items() if name != "logits"}
    return tuple(parities)


def verify_generation(model: PreTrainedModel, encoder: OnnxModel, decoder: OnnxModel, options: OnnxOptions) -> Parity:
    """Greedy generation through the two graphs gives exactly the tokens that ``generate`` gives, but for ties."""
    new, length = options.greedy_tokens, probe_length(model)
    gaps = []
    for index, row in enumerate(probe_ids(model, options.greedy_prompts, length)):
        text = row[None, : max(1, length - 2 * index)]
        inputs = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        own_cache = vendor.with_cache(model, fill_cross_cache((), ()))  # generate's has a place a layer of the encoder
        reference = torch_greedy(model, inputs | own_cache, new, eos=None)
        gaps.append(greedy_gap(reference, onnx_greedy(encoder, decoder, inputs, int(reference.sequences[0, 0]), new)))
    return require_greedy("onnx greedy tokens", "the graphs'", gaps, precision_of(options).tie)


def onnx_greedy(encoder: OnnxModel, decoder: OnnxModel, inputs: Tensors, start: int, new: int) -> list[int]:
    """``start`` and ``new`` greedily chosen tokens for one text."""
    cross = {_past(name): value for name, value in encoder(inputs).items() if name.startswith("present")}
    past = decoder.empty([each.name for each in decoder.inputs if ".decoder." in each.name], 1)
    tokens = [start]
    for _ in range(new):
        feeds = {"input_ids": torch.tensor([tokens[-1:]]), "encoder_attention_mask": inputs["attention_mask"]}
        output = decoder(feeds | past | cross)
        tokens.append(int(output["logits"][0, -1].argmax()))
        past = {_past(name): value for name, value in output.items() if name != "logits"}
    return tokens


def torch_encoding(model: Any, feeds: Tensors) -> Tensors:
    """What the encoder graph should give, from one ordinary pass of the whole model."""
    output = model(**feeds, decoder_input_ids=feeds["input_ids"][:, :1], use_cache=True)
    cross = cache_tensors(vendor.cache_of(output).cross_attention_cache)
    named = {f"present.{i // 2}.encoder.{('key', 'value')[i % 2]}": each.float() for i, each in enumerate(cross)}
    return {"last_hidden_state": output.encoder_last_hidden_state.float(), **named}


def _torch_step(model: Any, new: torch.Tensor, mask: torch.Tensor, past: Tensors, cross: Tensors) -> Tensors:
    cache = fill_cross_cache(tuple(past.values()), tuple(cross.values()))
    hidden = next(iter(cross.values()))[:, 0]
    output = model(
        encoder_outputs=(hidden,),
        attention_mask=mask,
        decoder_input_ids=new,
        use_cache=True,
        **vendor.with_cache(model, cache),
    )
    own = cache_tensors(vendor.cache_of(output).self_attention_cache)
    named = {f"present.{i // 2}.decoder.{('key', 'value')[i % 2]}": each.float() for i, each in enumerate(own)}
    return {"logits": output.logits.float(), **named}


def _past(name: str) -> str:
    return name.replace("present.", "past_key_values.")
