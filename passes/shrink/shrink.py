"""Shrink: cut what the plan does not keep out of the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from peft import PeftModel

from passes.errors import PostconditionError, PreconditionError
from passes.models import Parity, base_model, count_parameters
from passes.pipeline import PassResult, PreservingPass, Program, RunContext
from passes.shrink.build import build_compact


@dataclass(frozen=True)
class ShrinkPass(PreservingPass):
    """Removes the units for real.

    The result is a stock transformers model with a plain configuration, or where no stock class holds the sizes, one
    that carries its own modelling file. Ensures that it computes what the masked model computed, and that its parameter
    count is the plan's.
    """

    name = "shrink"

    def requires(self, program: Program) -> None:
        """A plan, and no adapter any more."""
        super().requires(program)
        if program.plan is None or isinstance(program.model, PeftModel):
            raise PreconditionError("pass 'shrink' needs a plan and a merged model: run DecidePass and MergePass first")

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Cut the tensors and rebuild the stock model around them."""
        assert program.plan is not None
        model, graph, plan = base_model(program.model), program.traced, program.plan
        if plan.target_parameters == graph.parameters():
            return PassResult(replace(program, masks=None), modified=False)
        compact = build_compact(model, graph, plan.kept)
        return PassResult(replace(program, model=compact, masks=None), modified=True)

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """Same response, and exactly the planned number of parameters."""
        assert before.plan is not None
        parameters = count_parameters(base_model(after.model))
        if parameters != before.plan.target_parameters:
            raise PostconditionError(
                f"pass 'shrink' left {parameters:,} parameters, the plan says {before.plan.target_parameters:,}"
            )
        return super().ensures(before, after)
