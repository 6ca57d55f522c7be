"""Recompensate: put back the weights that an earlier compensation solved, without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from passes.errors import ModelError, PlanError, PreconditionError
from passes.models import parameter_at
from passes.pipeline import Compensation, Pass, PassResult, Program, RunContext


@dataclass(frozen=True)
class RecompensatePass(Pass):
    """Gives the model the weights, by plain name, that ``CompensatePass`` left in its own run.

    It stands where that one stood: before an adapter that was trained afterwards is merged, else after merging.
    """

    weights: Mapping[str, torch.Tensor] = field(metadata={"record": False})
    name = "recompensate"

    def requires(self, program: Program) -> None:
        """A traced program under masks, that has all the parameters in these shapes."""
        if program.graph is None or program.masks is None:
            raise PreconditionError("pass 'recompensate' needs masks: run ReplayPass first")
        for name, weight in self.weights.items():
            try:
                shape = parameter_at(program.model, name).shape
            except (AttributeError, ModelError) as error:
                raise PlanError(f"the compensated weights are for another model: this one has no {name}") from error
            if shape != weight.shape:
                raise PlanError(
                    f"the compensated weights are for another model: {name} is {list(weight.shape)}, here {list(shape)}"
                )

    @torch.no_grad()
    def call(self, program: Program, run: RunContext) -> PassResult:
        """Write the weights into the working copy."""
        for name, weight in self.weights.items():
            parameter = parameter_at(program.model, name)
            parameter.data = weight.to(parameter)
        done = Compensation((), {}, self.weights)
        return PassResult(replace(program, compensation=done).expecting_itself(), modified=bool(self.weights))
