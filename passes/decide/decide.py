"""Decide: write down which units stay. From here on neither data nor training is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from peft import PeftModel

from passes.budget import LatencyModel, Solver
from passes.criteria import CRITERIA, Needs, SavedScores
from passes.errors import PreconditionError
from passes.graph import COMPENSATED, Plan
from passes.models import ADAPTER, fingerprint, scored_by
from passes.options import Target
from passes.pipeline import Pass, PassResult, Program, RunContext


@dataclass(frozen=True)
class DecidePass(Pass):
    """Turns the masks into a plan and checks that it meets the target exactly."""

    target: Target
    criterion: str
    details: Mapping[str, Any] = field(default_factory=dict)
    latency: LatencyModel | None = field(default=None, metadata={"record": False})
    name = "decide"

    def requires(self, program: Program) -> None:
        """A traced program with masks."""
        if program.graph is None or program.masks is None:
            raise PreconditionError("pass 'decide' needs masks: run TunePass or ScorePass first")

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Write the plan."""
        graph = program.traced
        assert program.masks is not None
        units = {name: mask.nonzero().flatten().tolist() for name, mask in program.masks.items()}
        kept = {name: tuple(some) for name, some in graph.complete(units).items() if not isinstance(some, int)}
        Solver.of(self.target, graph, self.latency).check(kept)
        done = program.compensation
        plan = Plan(
            source=done.source if done else fingerprint(program.model),
            family=graph.family,
            budget=self.target.wanted.asked,
            layout=str(self.target.layout),
            source_parameters=graph.parameters(),
            target_parameters=graph.parameters(kept),
            kept=kept,
            criterion=self.criterion,
            scored_by=self._exceptions(program),
            options={**self.details, **self.target.options, **({COMPENSATED: done.options} if done else {})},
        )
        decided = replace(program, plan=plan)
        if program.scores is not None:
            decided = decided.leaving(SavedScores(plan.source, self.criterion, program.scores, plan.scored_by))
        return PassResult(decided, modified=False)

    def _exceptions(self, program: Program) -> dict[str, str]:
        """The dimensions that a criterion which reads the adapter had to score otherwise."""
        entry = CRITERIA.get(self.criterion)
        if entry is None or entry.needs is not Needs.ADAPTER or not isinstance(program.model, PeftModel):
            return {}
        return {name: way for name, way in scored_by(program.model, program.traced).items() if way != ADAPTER}
