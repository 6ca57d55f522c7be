"""Decide: write down which units stay. From here on neither data nor training is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from peft import PeftModel

from passes.adapter import ADAPTER, scored_by
from passes.budget import LatencyModel
from passes.criteria import CRITERIA, Needs
from passes.errors import PlanError, PreconditionError
from passes.infra import Pass, PassResult
from passes.plan import COMPENSATED, Plan, fingerprint
from passes.program import Program
from passes.solver import Solver
from passes.target import Target


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

    def call(self, program: Program) -> PassResult:
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
        return PassResult(replace(program, plan=plan), modified=False)

    def _exceptions(self, program: Program) -> dict[str, str]:
        """The dimensions that a criterion which reads the adapter had to score otherwise."""
        entry = CRITERIA.get(self.criterion)
        if entry is None or entry.needs is not Needs.ADAPTER or not isinstance(program.model, PeftModel):
            return {}
        return {name: way for name, way in scored_by(program.model, program.traced).items() if way != ADAPTER}


@dataclass(frozen=True)
class ReplayPass(Pass):
    """Takes a saved plan over in place of tuning and deciding. The plan must be for this very model."""

    plan: Plan
    name = "replay"

    @property
    def options(self) -> Mapping[str, Any]:
        """Which source the plan is for."""
        return {"source": self.plan.source}

    def requires(self, program: Program) -> None:
        """A traced program, whose model is the plan's source."""
        if program.graph is None:
            raise PreconditionError("pass 'replay' needs a traced program: run TracePass first")
        actual = fingerprint(program.model)
        if actual != self.plan.source:
            raise PlanError(
                f"the plan is for the model with fingerprint {self.plan.source[:12]}, this one has {actual[:12]}: "
                "load the model that the plan was made for"
            )

    def call(self, program: Program) -> PassResult:
        """Set the plan's masks."""
        masks = self.plan.masks(program.traced)
        return PassResult(replace(program, plan=self.plan, masks=masks).expecting_itself(), modified=False)
