"""Decide: write down which units stay. From here on neither data nor training is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from passes.errors import PlanError, PreconditionError
from passes.infra import Pass, PassResult
from passes.plan import Plan, fingerprint
from passes.program import Program
from passes.target import Target


@dataclass(frozen=True)
class DecidePass(Pass):
    """Turns the masks into a plan and checks that it meets the target exactly."""

    target: Target
    criterion: str
    details: Mapping[str, Any] = field(default_factory=dict)
    name = "decide"

    def requires(self, program: Program) -> None:
        """A traced program with masks."""
        if program.graph is None or program.masks is None:
            raise PreconditionError("pass 'decide' needs masks: run TunePass first")

    def call(self, program: Program) -> PassResult:
        """Write the plan."""
        graph, widths = program.traced, self.target.widths(program.traced)
        assert program.masks is not None
        kept = {name: tuple(mask.nonzero().flatten().tolist()) for name, mask in program.masks.items()}
        counts = {name: len(units) for name, units in kept.items()}
        if counts != graph.uniform(widths.groups, widths.channels):
            raise PlanError(f"the masks do not meet the target of {widths}: {counts}")
        plan = Plan(
            source=fingerprint(program.model),
            family=graph.family,
            ratio=self.target.ratio,
            source_parameters=graph.parameters(),
            target_parameters=graph.parameters(counts),
            kept=kept,
            criterion=self.criterion,
            options=self.details,
        )
        return PassResult(replace(program, plan=plan), modified=False)


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
