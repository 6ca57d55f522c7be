"""One cell of the quality benchmark: a recipe, run on a corpus at a ratio with a seed."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from typing import Any

from corpora import Loaded

from lpc.evaluation import token_perplexity
from passes.compensation import CompensatePass
from passes.decide import DecidePass, ScorePass
from passes.options import CompensateOptions, Layout, LoraOptions, ScoreOptions, Target, TraceOptions, TuneOptions
from passes.pipeline import Pass, Pipeline, Program, plain
from passes.shrink import ShrinkPass
from passes.trace import TracePass
from passes.tuning import AttachPass, DetachPass, MergePass, TunePass, settled

EVALUATED_AT_ONCE = 20

RATE, MOST = 0.64, 0.01
"""The learning rate of all cells that do not say another is the one over the hidden size, at most the other."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a cell is made; ``tune`` says the criterion and, if ``trained``, how the adapters train.

    With the schedule ``ONE_SHOT``, or untrained, units are ranked on ``samples`` sequences of the training text before
    anything is trained. Compensation follows the ranking where it was one-shot (before tuning), else tuning.
    """

    tune: TuneOptions = TuneOptions()
    trained: bool = True
    compensate: CompensateOptions | None = None
    lora: LoraOptions = LoraOptions()
    layout: str = Layout.UNIFORM
    comparison: str = "kind"
    balance: str = "measured"
    samples: int = 128

    def target(self, ratio: float) -> Target:
        """The target at a ratio."""
        return Target(ratio=ratio, layout=self.layout, comparison=self.comparison, balance=self.balance)

    @property
    def solves_first(self) -> bool:
        """Whether compensation comes before tuning."""
        return self.trained and settled(self.tune).one_shot

    def passes(self, loaded: Loaded, ratio: float, steps: int, seed: int) -> tuple[list[Pass], list[Pass]]:
        """From the dense model until all is ranked and trained, and from there to the compact model."""
        target, data = self.target(ratio), loaded.train
        rate = self.tune.learning_rate or min(MOST, RATE / loaded.model.config.hidden_size)
        tune = settled(replace(self.tune, steps=steps if self.trained else 0, seed=seed, learning_rate=rate))
        importance = tune.importance_for(target)
        score = ScoreOptions(criterion=tune.criterion, samples=self.samples, seed=seed, importance=importance)
        solve: list[Pass] = []
        if self.compensate:
            solve.append(CompensatePass(data, replace(self.compensate, seed=seed), keep_originals=True))
        before: list[Pass] = [self._trace(), AttachPass(self.lora, seed)]
        after: list[Pass] = [DecidePass(target, tune.criterion), MergePass(), ShrinkPass()]
        if not self.trained:
            return [*before, ScorePass(target, data, score), DetachPass()], [*solve, *after]
        if self.solves_first:
            return [*before, ScorePass(target, data, score), *solve, TunePass(target, data, tune)], after
        return [*before, TunePass(target, data, tune)], [*solve, *after]

    def _trace(self) -> TracePass:
        return TracePass(TraceOptions(custom_code=self.layout == Layout.PER_LAYER))


@dataclass(frozen=True)
class Tuned:
    """What a recipe has trained, before compensation, and what that took; kept for the recipe that compensates it."""

    key: tuple[int, Recipe, float, int, int]
    program: Program
    seconds: float
    cpu_seconds: float


_kept: list[Tuned] = []


def cell(loaded: Loaded, recipe: Recipe, ratio: float, steps: int, seed: int) -> dict[str, Any]:
    """Compress once. Perplexities of the compact model on both held-out texts, seconds, and what was kept."""
    before, after = recipe.passes(loaded, ratio, steps, seed)
    key = (id(loaded), recipe if recipe.solves_first else replace(recipe, compensate=None), ratio, steps, seed)
    if not _kept or _kept[0].key != key:
        start, cpu = time.perf_counter(), time.process_time()
        program = Pipeline(before)(Program.start(copy.deepcopy(loaded.model))).program
        _kept[:] = [Tuned(key, program, time.perf_counter() - start, time.process_time() - cpu)]
    made, start, cpu = _kept[0], time.perf_counter(), time.process_time()
    program = replace(made.program, model=copy.deepcopy(made.program.model))
    program = Pipeline(after)(program).program
    assert program.plan is not None
    texts = {"perplexity": loaded.heldout, "choice": loaded.choice}
    return {
        "seconds": time.perf_counter() - start + made.seconds,
        "cpu_seconds": time.process_time() - cpu + made.cpu_seconds,
        **{
            name: token_perplexity(program.model, text.blocks, EVALUATED_AT_ONCE, labels=text.labels).value
            for name, text in texts.items()
        },
        "achieved_ratio": program.plan.achieved_ratio,
        "counts": program.plan.counts(),
        "undone": any(getattr(record.report, "undone", False) for record in program.history),
        "recipe": plain(recipe),
    }
