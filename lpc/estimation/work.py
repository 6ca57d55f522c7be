"""Operations of each stage, from the sizes of the model and the options of the run.

A backward pass through frozen weights costs as much as the forward pass: gradients of the inputs alone. Those of A and
B cost twice the adapter's forward pass. The gradients of all weights, which the true-gradient criterion needs, cost
one forward pass more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lpc.estimation.sizes import Sizes
from passes.algebra import BLOCK
from passes.criteria import Needs, criterion_named
from passes.decide import ROWS
from passes.options import TuneOptions

ELIMINATION = 4.0
"""Operations of an elimination, in inputs³: inverse of the Gram matrix, and taking units out of it one by one."""

SCORE_OPERATIONS = 16
"""Operations an element of a weight, beside the products of rank 2r, when LoRAPrune scores it."""


ANSWERED = 50 * 100
"""Tokens of the fixed prompts and their answers, about."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much goes through the model. ``tune`` is settled; ``rank``: LoRA's; ``compensated``: whether projections are
    re-solved; ``on_cpu``: where, since batches are ranked in pieces there; ``own``: sequences that the model writes;
    ``ways`` to share what goes, which are measured.
    """

    tune: TuneOptions
    rank: int
    context: int
    batch: int
    samples: int
    heldout: int
    compensated: bool
    on_cpu: bool
    own: int = 0
    ways: int = 0

    @property
    def sampled(self) -> int:
        """Tokens of the calibration sample."""
        return self.samples * self.context

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.tune.gradient_accumulation * self.context


def generate(sizes: Sizes, load: Load) -> float:
    """Operations of writing the model's own text, with a cache."""
    return load.own * load.context * sizes.forward(load.context)


def answer(sizes: Sizes, load: Load) -> float:
    """Operations of answering the fixed prompts once."""
    return ANSWERED * sizes.forward(load.context)


def step(sizes: Sizes, load: Load, *, share: float = 1.0, true_gradient: bool = False) -> float:
    """Operations of a step of tuning, of a model that has this share of its layers' weights left."""
    frozen, rank = sizes.forward(load.context), load.rank
    adapter = sizes.forward(load.context, rank) - frozen
    token = share * (2 * (frozen - sizes.head) + 3 * adapter) + 2 * sizes.head
    token += frozen if load.tune.distill is not None else 0
    token += frozen if true_gradient else 0
    return token * load.step_tokens + (0.0 if true_gradient else scoring(sizes, load))


def scoring(sizes: Sizes, load: Load) -> float:
    """Of the scores that are read at a step of tuning, from an adapter's gradients."""
    asked = not load.tune.one_shot and criterion_named(load.tune.criterion).needs is Needs.ADAPTER
    return float(sizes.adapted * (4 * load.rank + SCORE_OPERATIONS)) if asked else 0.0


def rank_units(sizes: Sizes, load: Load) -> float:
    """Operations of ranking on the calibration sample."""
    entry = criterion_named(load.tune.criterion)
    work = load.ways * min(load.samples, ROWS) * load.context * sizes.forward(load.context)
    if entry.needs is Needs.WEIGHTS:
        return work
    passes = 1 + entry.sees_gradients
    work += passes * sizes.forward(load.context, load.rank if entry.needs is Needs.ADAPTER else 0) * load.sampled
    if load.tune.criterion == "obs":
        work += load.sampled * seen(sizes, load) + eliminated(sizes)
    return work


def gram(width: float) -> float:
    """Of a token: the products of all pairs of so many values, of which half are formed, and all within a block."""
    return width * (width + width / max(1, math.ceil(width / BLOCK)))


def seen(sizes: Sizes, load: Load) -> float:
    """Of a token, by ``obs``: the products of what the projections that read units read, and of gradients."""
    felt = criterion_named(load.tune.criterion).sees_gradients
    return sum(gram(read) + felt * gram(written) for read, written in sizes.consumers)


def eliminating(read: int, written: int) -> float:
    """Of the units of one projection, until none is left."""
    return ELIMINATION * read**3 + 2.0 * read * written**2


def eliminated(sizes: Sizes) -> float:
    """Of the units of all projections."""
    return sum(eliminating(read, written) for read, written in sizes.consumers)


def compensate(sizes: Sizes, load: Load, *, kept: float = 1.0) -> float:
    """Operations of a compensation at most: its guard, each layer once on both sides, the normal equations.

    ``kept``: the share of what projections read that stays.
    """
    forward = sizes.forward(load.context)
    layers = forward - sizes.head
    token = forward + sizes.head + 2 * layers + 2.0 * sizes.solved + solving(sizes, kept)
    return token * load.sampled + solved(sizes, kept)


def solution(read: float, written: int) -> float:
    """Of one projection's new weight: a factor, the step, and the errors before and after it."""
    return read**3 / 3 + 4.0 * read**2 * written


def solved(sizes: Sizes, kept: float = 1.0) -> float:
    """Of all new weights."""
    return sum(solution(kept * read, written) for read, written in sizes.consumers)


def added(read: float, written: int) -> float:
    """Of a token: what it adds to the normal equations of one projection."""
    return gram(read) + 2.0 * read * written


def solving(sizes: Sizes, kept: float = 1.0) -> float:
    """Of a token: what it adds to the normal equations of all projections."""
    return sum(added(kept * read, written) for read, written in sizes.consumers)


def measure(sizes: Sizes, load: Load) -> float:
    """Operations of one measure on what is held out."""
    return sizes.forward(load.context) * load.heldout * load.context
