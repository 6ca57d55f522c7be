"""One cell of the quality benchmark: a recipe, run on a corpus at a ratio with a seed."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from typing import Any

from corpora import Loaded

from lpc.data import BlockDataset
from lpc.perplexity import token_perplexity
from passes.adapter import LoraOptions
from passes.attach import AttachPass, DetachPass
from passes.compensate import CompensateOptions, CompensatePass
from passes.decide import DecidePass
from passes.infra import Pass, Sequential, plain
from passes.merge import MergePass
from passes.program import Program
from passes.score import ScoreOptions, ScorePass
from passes.shrink import ShrinkPass
from passes.target import Layout, Target
from passes.trace import TraceOptions, TracePass
from passes.tune import TuneOptions, TunePass

EVALUATED_AT_ONCE = 20


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
    samples: int = 128

    def target(self, ratio: float) -> Target:
        """The target at a ratio."""
        return Target(ratio=ratio, layout=self.layout, comparison=self.comparison)

    def passes(self, loaded: Loaded, ratio: float, steps: int, seed: int) -> list[Pass]:
        """From the dense model to the compact one."""
        target, data, trace = self.target(ratio), BlockDataset(loaded.train), self._trace()
        tune = replace(self.tune, steps=steps if self.trained else 0, seed=seed).settled()
        score = ScoreOptions(
            criterion=tune.criterion, samples=self.samples, seed=seed, importance=tune.importance_for(target)
        )
        solve: list[Pass] = []
        if self.compensate:
            solve.append(CompensatePass(data, replace(self.compensate, seed=seed), keep_originals=True))
        attach, decide = AttachPass(self.lora, seed), DecidePass(target, tune.criterion)
        if not self.trained:
            ranked: list[Pass] = [ScorePass(target, data, score), *solve, decide, DetachPass()]
        elif tune.schedule.one_shot:
            ranked = [ScorePass(target, data, score), *solve, TunePass(target, data, tune), decide]
        else:
            ranked = [TunePass(target, data, tune), *solve, decide]
        return [TracePass(trace), attach, *ranked, MergePass(), ShrinkPass()]

    def _trace(self) -> TraceOptions:
        return TraceOptions(custom_code=self.layout == Layout.PER_LAYER)


def cell(loaded: Loaded, recipe: Recipe, ratio: float, steps: int, seed: int) -> dict[str, Any]:
    """Compress once. Perplexities of the compact model on both held-out texts, seconds, and what was kept."""
    program = Program.start(copy.deepcopy(loaded.model))
    start, cpu = time.perf_counter(), time.process_time()
    program = Sequential(*recipe.passes(loaded, ratio, steps, seed))(program).program
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert program.plan is not None
    texts = {"perplexity": loaded.heldout, "choice": loaded.choice}
    return {
        **{name: token_perplexity(program.model, text, EVALUATED_AT_ONCE).value for name, text in texts.items()},
        "seconds": seconds,
        "cpu_seconds": cpu,
        "achieved_ratio": program.plan.achieved_ratio,
        "counts": program.plan.counts(),
        "undone": any(getattr(record.report, "undone", False) for record in program.history),
        "recipe": plain(recipe),
    }
