"""Greedy generation with torch and with a graph, and how far another engine's tokens are from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from exporters.onnx.session import OnnxModel
from exporters.onnx.verify.causal import ProbeStep, onnx_answer
from passes.errors import PostconditionError
from passes.models import Parity, generated


def torch_greedy(model: PreTrainedModel, inputs: Mapping[str, Any], new: int, *, eos: Any) -> Any:
    """``model.generate``'s output for exactly ``new`` tokens, plain greedy whatever the generation config says.

    ``eos`` (ids or None) is suppressed until then.
    """
    own = model.generation_config
    settings = GenerationConfig(
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        num_beams=1,
        eos_token_id=eos,
        pad_token_id=0,
        decoder_start_token_id=getattr(own, "decoder_start_token_id", None),
        bos_token_id=getattr(own, "bos_token_id", None),
        output_logits=True,
        return_dict_in_generate=True,
    )
    return generated(model, inputs, settings)


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What a graph goes on with, as ``generate`` says it: ``sequences`` (1, tokens), and ``logits`` of each new one."""

    sequences: torch.Tensor
    logits: tuple[torch.Tensor, ...]


def graph_greedy(graph: OnnxModel, prompt: torch.Tensor, new: int, *, eos: Any) -> Continuation:
    """A decoder's graph in onnxruntime, greedy for exactly ``new`` tokens; ``eos`` is suppressed until then."""
    ids, logits = prompt[None], list[torch.Tensor]()
    past: tuple[torch.Tensor, ...] = ()
    banned = torch.tensor([eos] if isinstance(eos, int) else list(eos or ()), dtype=torch.int64)
    for _ in range(new):
        fresh = ids[:, len(prompt) - 1 + len(logits) :] if logits else ids
        answer = onnx_answer(graph, ProbeStep(ids=fresh, mask=torch.ones_like(ids), past=past))
        past = tuple(answer.values())[1:]
        logits.append(answer["logits"][:, -1])
        ids = torch.cat((ids, logits[-1].index_fill(-1, banned, -torch.inf).argmax(-1, keepdim=True)), dim=1)
    return Continuation(sequences=ids, logits=tuple(logits))


def greedy_gap(reference: Any, got: Sequence[int]) -> float:
    """0 if ``got`` is the continuation that ``generate`` gave, else the relative gap of the two tokens' logits.

    ``reference`` is ``torch_greedy``'s output for one sequence; ``got`` holds the whole sequence, or its beginning.
    """
    wanted, logits = reference.sequences[0].tolist(), reference.logits
    start = len(wanted) - len(logits)
    for index in range(start, len(wanted)):
        if index >= len(got):
            return float("inf")
        if got[index] != wanted[index]:
            row = logits[index - start][0]
            return float((row[wanted[index]] - row[got[index]]).abs() / row.abs().max())
    return 0.0


def require_greedy(name: str, engine: str, gaps: Sequence[float], tie: float) -> Parity:
    """The worst gap as a parity: one up to ``tie`` passes, anything else raises ``PostconditionError``."""
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    parity = Parity(name, gaps[worst], tie)
    if not parity.holds:
        message = f"export: {engine} tokens differ from generate's on probe prompt {worst}, and not by a tie: {parity}"
        raise PostconditionError(message)
    return parity
