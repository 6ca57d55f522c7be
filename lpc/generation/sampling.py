"""Texts of one length, many at a time, drawn from a model with a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from lpc.generation.script import Script
from passes.models import base_model, evaluation_mode, generated

__all__ = ["drawn"]

TOP_P = 0.95
"""The unlikely rest of a twentieth is not drawn."""


class Following(LogitsProcessor):  # type: ignore[misc]
    """Keeps texts to a script: bars what may not be drawn, and puts in what stands between turns."""

    def __init__(self, script: Script, rows: int, tell: Callable[[int], None]) -> None:
        self._script, self._tell, self._done = script, tell, 0
        self._turns, self._coming = [0] * rows, [list[int]() for _ in range(rows)]
        self._allowed: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores ``[rows, vocabulary]`` of the next tokens behind ``input_ids`` ``[rows, tokens]``."""
        self._allowed = self._allowed or self._script.allowed(scores.shape[-1], scores.device)
        last = input_ids[:, -1].tolist()
        only = [self._next(row, token) for row, token in enumerate(last)]
        barred = ~torch.stack([self._allowed[turn] for turn in self._turns])
        for row, token in enumerate(only):
            if token is not None:
                barred[row] = True
                barred[row, token] = False
        self._done += 1
        self._tell(self._done)
        return scores.masked_fill(barred, -torch.inf)  # type: ignore[return-value]

    def _next(self, row: int, last: int) -> int | None:
        """The one token that may come in a row; None where the model is free."""
        coming, turns = self._coming[row], self._script.turns
        if not coming and self._done and last == turns[self._turns[row]].end:
            coming += turns[self._turns[row]].then
            self._turns[row] = (self._turns[row] + 1) % len(turns)
        return coming.pop(0) if coming else None


class Nucleus(LogitsProcessor):  # type: ignore[misc]
    """Draws a token of softmax(logits / ``temperature``), cut to the fewest that have ``TOP_P`` of it; bars all others.

    The nucleus is that of Holtzman et al. (arXiv 1904.09751, section 3.1). What is drawn outside of it is drawn again,
    since sorting the vocabulary takes a processor longer than a small model's step.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores ``[rows, vocabulary]`` in which one token a row is not barred."""
        shares = (scores.float() / self._temperature).softmax(-1)
        chosen = _any_of(shares)
        while len(rows := _outside(shares, chosen)):
            chosen[rows] = _any_of(shares[rows])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)  # type: ignore[return-value]


def _any_of(shares: torch.Tensor) -> torch.Tensor:
    """A token of each row by its share, ``[rows, 1]``."""
    mass = shares.cumsum(-1)
    at = torch.rand(len(mass), 1, device=mass.device) * mass[:, -1:]
    return torch.searchsorted(mass, at, right=True).clamp_max(mass.shape[-1] - 1)


def _outside(shares: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The rows whose token is not in the nucleus: likelier ones, and alike ones before it, have ``TOP_P`` already."""
    share, places = shares.gather(1, chosen), torch.arange(shares.shape[-1], device=shares.device)
    before = (shares > share) | ((shares == share) & (places < chosen))
    return ((shares * before).sum(-1) >= TOP_P).nonzero()[:, 0]


def drawn(
    model: PreTrainedModel | PeftModel,
    script: Script,
    rows: int,
    length: int,
    seed: int,
    temperature: float,
    tell: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """``rows`` texts of ``length`` tokens each, int64 on the CPU, as the seed draws them with torch's own generator.

    A token is drawn of softmax(logits / ``temperature``). ``tell`` is told after every token how many there are.
    Raises what the model raises.
    """
    parameter = next(model.parameters())
    begin = torch.tensor([script.opening] * rows, device=parameter.device)
    new = length - begin.shape[1]
    settings = GenerationConfig(
        max_new_tokens=new,
        do_sample=False,  # Nucleus draws, and leaves one token
        use_cache=True,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    inputs = {"input_ids": begin, "attention_mask": torch.ones_like(begin)}
    with evaluation_mode(model):
        found = generated(base_model(model), inputs, settings, [Following(script, rows, tell), Nucleus(temperature)])
    texts: torch.Tensor = found.cpu()
    return texts


def seeds(seed: int, batches: int) -> Sequence[int]:
    """A seed for each batch, none of them another's."""
    return torch.randint(2**31, (batches,), generator=torch.Generator().manual_seed(seed)).tolist()
