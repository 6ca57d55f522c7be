"""What flows through the pipeline, and how to ask it what it computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from passes.adapter import Adapter, check_adapter
from passes.graph import PruningGraph
from passes.instruments import PassRecord
from passes.masks import Masks, masked
from passes.models import base_model, check_finite
from passes.parity import Parity, relative_difference
from passes.plan import Plan

PROBE_ROWS = 3
PROBE_TOKENS = 16
PROBE_PADDING = 5


@dataclass(frozen=True)
class Probe:
    """A small batch with padding on both sides. ``input_ids`` and ``attention_mask`` are [rows, tokens], int64."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    @classmethod
    def random(cls, vocab_size: int, *, seed: int = 0) -> Probe:
        """Random tokens: one row without padding, one padded on the left, one on the right."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, vocab_size, (PROBE_ROWS, PROBE_TOKENS), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, :PROBE_PADDING] = 0
        mask[2, -PROBE_PADDING:] = 0
        return cls(ids, mask)


@dataclass(frozen=True)
class Response:
    """What a model computes on a probe, at the rows where its mask is 1.

    ``logits`` is [tokens, vocabulary]; ``hidden`` holds the residual stream after the embedding and after each layer,
    [tokens, hidden] each.
    """

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]

    def compare(self, name: str, expected: Response, tolerance: float) -> Parity:
        """The parity of this response's logits with the expected ones."""
        return Parity(name, relative_difference(self.logits, expected.logits), tolerance)

    def first_difference(self, expected: Response, tolerance: float) -> str:
        """Where the two part: the first layer whose output differs by more than the tolerance."""
        for layer, (actual, wanted) in enumerate(zip(self.hidden, expected.hidden, strict=False)):
            difference = relative_difference(actual, wanted)
            if not difference <= tolerance:
                place = "the embedding" if layer == 0 else f"layer {layer - 1}"
                return f"{place} is the first to differ ({difference:.2e})"
        return "only the logits differ"


@dataclass(frozen=True)
class Program:
    """The IR: a model, what is known of it, and what it must still compute.

    ``expected`` is the response that the next meaning-preserving pass must reproduce under the masks. Passes never
    change a Program; the model inside is the pipeline's own working copy. ``adapter`` is what was merged into it.
    """

    model: PreTrainedModel | PeftModel
    probe: Probe
    graph: PruningGraph | None = None
    masks: Masks | None = None
    plan: Plan | None = None
    adapter: Adapter | None = None
    expected: Response | None = None
    history: tuple[PassRecord, ...] = ()

    @classmethod
    def start(cls, model: PreTrainedModel | PeftModel) -> Program:
        """The program of a working copy, ready for the first pass.

        Raises ModelError if a weight is not finite, UnsupportedModelError if it wears anything but one plain LoRA.
        """
        if isinstance(model, PeftModel):
            check_adapter(model)
        check_finite(model)
        return cls(model, Probe.random(base_model(model).config.vocab_size)).expecting_itself()

    @property
    def traced(self) -> PruningGraph:
        """The graph; only for passes whose ``requires`` has checked that there is one."""
        assert self.graph is not None
        return self.graph

    def respond(self) -> Response:
        """What the program computes now: the model under the masks, in evaluation mode."""
        if self.masks is None or self.graph is None:
            return respond(self.model, self.probe)
        with masked(self.model, self.graph, self.masks):
            return respond(self.model, self.probe)

    def expecting_itself(self) -> Program:
        """The same program, expecting from now on what it computes now."""
        return replace(self, expected=self.respond())


@torch.no_grad()
def respond(model: PreTrainedModel | PeftModel, probe: Probe) -> Response:
    """A model's response to the probe, in evaluation mode; training mode is restored."""
    was_training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        real = probe.attention_mask.bool()
        inputs: dict[str, Any] = {
            "input_ids": probe.input_ids.to(device),
            "attention_mask": probe.attention_mask.to(device),
            "position_ids": positions(probe.attention_mask).to(device),
        }
        output = model(**inputs, use_cache=False, output_hidden_states=True)
        hidden = tuple(state[real.to(device)].cpu() for state in output.hidden_states)
        return Response(output.logits[real.to(device)].cpu(), hidden)
    finally:
        model.train(was_training)


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids [rows, tokens] that count real tokens from 0, as ``generate`` makes them; 1 on left padding."""
    return (attention_mask.cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
