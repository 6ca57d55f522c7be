"""The probe: a small batch that fits a model of any task, and what the model answers to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from passes.errors import ModelError, UnsupportedModelError
from passes.models.base import base_model, takes
from passes.models.parity import Parity, relative_difference
from passes.models.routing import Choices
from passes.models.tasks import Task, task_of

PROBE_ROWS = 3
PROBE_TOKENS = 16
PROBE_PADDING = 5
OUTPUTS = ("logits", "start_logits", "end_logits")


@dataclass(frozen=True)
class Probe:
    """A small batch. ``inputs`` are the keyword arguments of ``forward``, on the CPU.

    ``real`` [rows, tokens], bool, says which positions of the outputs are to be compared; None if the outputs have no
    token axis.
    """

    inputs: Mapping[str, torch.Tensor]
    real: torch.Tensor | None

    @classmethod
    def of(cls, model: PreTrainedModel, *, seed: int = 0) -> Probe:
        """Random inputs for a model, which may be on the meta device: only its class and configuration are read.

        Text is three rows: one without padding, one padded on the left (on the right where only that is usual: in
        all but causal language models), one on the right. Images are standard normal.
        Raises UnsupportedModelError if the class has no task, or takes neither text nor images.
        """
        with torch.device("cpu"):  # the caller may be building on the meta device
            return cls(*_random(model, task_of(model), torch.Generator().manual_seed(seed)))

    def on(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The inputs on a device, images in the given dtype."""
        return {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in self.inputs.items()
        }


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids [rows, tokens] that count real tokens from 0, as ``generate`` makes them; 1 on left padding."""
    return (attention_mask.cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)


def _random(
    model: PreTrainedModel, task: Task, generator: torch.Generator
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Inputs, and which positions of the outputs are real."""
    if takes(model, "pixel_values"):
        return {"pixel_values": _images(model.config, generator)}, None
    if not takes(model, "input_ids"):
        raise UnsupportedModelError(f"{type(model).__name__} takes neither input_ids nor pixel_values")
    inputs = _text(model, task, generator)
    if task is Task.SEQUENCE_CLASSIFICATION:
        return inputs, None
    return inputs, inputs["attention_mask"].bool() if task is not Task.SEQ2SEQ_LM else _target(inputs)


def _target(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.ones_like(inputs["decoder_input_ids"], dtype=torch.bool)


def _text(model: PreTrainedModel, task: Task, generator: torch.Generator) -> dict[str, torch.Tensor]:
    config = model.config.get_text_config()
    # Without a padding token, a decoder that classifies sequences takes one row at a time.
    rows = 1 if task is Task.SEQUENCE_CLASSIFICATION and getattr(config, "pad_token_id", None) is None else PROBE_ROWS
    ids, mask = _tokens(config, rows, generator), torch.ones(rows, _length(config), dtype=torch.int64)
    left = task is Task.CAUSAL_LM
    if rows > 1:
        mask[1, slice(PROBE_PADDING) if left else slice(-2, None)] = 0
        mask[2, -PROBE_PADDING:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if left:  # padding is random tokens: nothing real may depend on them
        return inputs | ({"position_ids": positions(mask)} if takes(model, "position_ids") else {})
    ids[mask == 0] = getattr(config, "pad_token_id", None) or 0
    if task is Task.SEQ2SEQ_LM:
        inputs["decoder_input_ids"] = _tokens(config, rows, generator)
    elif config.is_encoder_decoder and isinstance(config.eos_token_id, int):
        ids[torch.arange(rows), mask.sum(-1) - 1] = config.eos_token_id  # BART classifies at this token
    return inputs


def _length(config: Any) -> int:
    return min(PROBE_TOKENS, getattr(config, "max_position_embeddings", None) or PROBE_TOKENS)


def _tokens(config: Any, rows: int, generator: torch.Generator) -> torch.Tensor:
    """Random tokens [rows, tokens] other than the padding and the end token, by which some models find their way."""
    special = {getattr(config, "pad_token_id", None), *_as_list(getattr(config, "eos_token_id", None))}
    plain = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    return plain[torch.randint(0, len(plain), (rows, _length(config)), generator=generator)]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _images(config: Any, generator: torch.Generator) -> torch.Tensor:
    vision = getattr(config, "vision_config", config)
    size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", None)
    if size is None or channels is None:
        raise UnsupportedModelError(f"the {config.model_type} configuration has no image_size and num_channels")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(PROBE_ROWS, channels, height, width, generator=generator)


@dataclass(frozen=True)
class Response:
    """What a model computes on a probe, where its inputs are not padding.

    ``outputs`` are the head's, by name: [tokens, ...] or, without a token axis, [rows, ...]. ``hidden`` is the residual
    stream, by place, in the order of computation: after the embedding and after each layer, [tokens, hidden] each.
    ``choices`` are what routers of experts computed (``passes.models.routing``).
    """

    outputs: Mapping[str, torch.Tensor]
    hidden: Mapping[str, torch.Tensor]
    choices: Choices = field(default_factory=dict)

    def check_finite(self, dtype: str) -> None:
        """Raise ModelError, naming the place, if an output is NaN or infinite: nothing could be proven of that."""
        if all(bool(output.isfinite().all()) for output in self.outputs.values()):
            return
        places = [place for place, state in self.hidden.items() if not state.isfinite().all()]
        raise ModelError(
            f"the model computes NaN or infinite values in {dtype.removeprefix('torch.')}, first in "
            f"{places[0] if places else min(self.outputs)}: load it in another dtype (--dtype bf16 or fp32), or "
            "correct its configuration (the epsilon of its norms, rope_parameters)"
        )

    def compare(self, name: str, expected: Response, tolerance: float) -> Parity:
        """The parity of this response's outputs with the expected ones: the worst of them and of the
        routers' logits; NaN if any is.
        """
        if self.outputs.keys() != expected.outputs.keys():
            return Parity(name, math.inf, tolerance)
        values = [relative_difference(self.outputs[key], expected.outputs[key]) for key in self.outputs]
        both = self.choices.keys() & expected.choices.keys()
        values += [relative_difference(self.choices[key][0], expected.choices[key][0]) for key in both]
        return Parity(name, math.nan if any(map(math.isnan, values)) else max(values), tolerance)

    def first_difference(self, expected: Response, tolerance: float) -> str:
        """Where the two part: the first layer whose output differs by more than the tolerance."""
        if self.hidden.keys() != expected.hidden.keys():
            return "the layers are not the same ones"
        for place, actual in self.hidden.items():
            if place in expected.hidden:
                if actual.shape != expected.hidden[place].shape:
                    return f"where they part is not known: {place} has other hidden channels than before"
                difference = relative_difference(actual, expected.hidden[place])
                if not difference <= tolerance:
                    return f"{place} is the first to differ ({difference:.2e})"
        return f"only the {' and '.join(self.outputs)} differ"


@torch.no_grad()
def respond(model: PreTrainedModel | PeftModel, probe: Probe) -> Response:
    """A model's response to the probe, in evaluation mode; training mode is restored.

    Of a model without a head, the last hidden state is the output.
    """
    was_training = model.training
    model.eval()
    try:
        parameter = next(p for p in model.parameters() if p.is_floating_point())
        inputs: dict[str, Any] = dict(probe.on(parameter.device, parameter.dtype))
        if takes(base_model(model), "use_cache"):
            inputs["use_cache"] = False
        output = model(**inputs, output_hidden_states=True, return_dict=True)
    finally:
        model.train(was_training)
    names = [name for name in OUTPUTS if output.get(name) is not None] or ["last_hidden_state"]
    return Response({name: _chosen(output[name], probe.real) for name in names}, _hidden(output, probe))


def _hidden(output: Mapping[str, Any], probe: Probe) -> dict[str, torch.Tensor]:
    source = probe.inputs.get("attention_mask")
    target = source if "decoder_input_ids" not in probe.inputs else probe.real
    parts = (("", "hidden_states", source), ("encoder ", "encoder_hidden_states", source))
    found = {}
    for side, key, mask in (*parts, ("decoder ", "decoder_hidden_states", target)):
        for layer, state in enumerate(output.get(key) or ()):
            place = f"{side}layer {layer - 1}" if layer else f"the {side}embedding"
            found[place] = _chosen(state, mask.bool() if mask is not None else None)
    return found


def _chosen(tensor: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    return (tensor if real is None else tensor[real.to(tensor.device)]).cpu()
