"""Replay: a plan made before is used again, without data and without scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from passes.errors import PlanError, PreconditionError
from passes.graph import Plan
from passes.models import fingerprint
from passes.pipeline import Pass, PassResult, Program, RunContext


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

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Set the plan's masks."""
        masks = self.plan.masks(program.traced)
        return PassResult(replace(program, plan=self.plan, masks=masks).expecting_itself(), modified=False)
