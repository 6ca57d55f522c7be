"""Shrink: cut what the plan does not keep out of the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from peft import PeftModel

from passes.errors import PreconditionError
from passes.models import Parity, base_model, masked, unchanged, widened
from passes.pipeline import Pass, PassResult, Program, RunContext
from passes.shrink.blockwise import compare_blocks, course_of
from passes.shrink.cut import build_compact
from passes.shrink.gathered import Gathered


@dataclass(frozen=True)
class ShrinkPass(Pass):
    """Removes the units for real.

    The result is a stock transformers model with a plain configuration, or where no stock class holds the sizes, one
    that carries its own modelling file. Ensures that each of its tensors is, bit for bit, what the plan leaves of the
    merged model's, that its configuration builds just this model, and that each layer computes what the masked one
    computes (``passes.shrink.gathered``, ``passes.shrink.blockwise``).
    """

    name = "shrink"

    def requires(self, program: Program) -> None:
        """A traced program with a plan, no adapter any more, and no masks but the plan's."""
        if program.graph is None:
            raise PreconditionError("pass 'shrink' needs a traced program: run TracePass first")
        if program.plan is None or isinstance(program.model, PeftModel):
            raise PreconditionError("pass 'shrink' needs a plan and a merged model: run DecidePass and MergePass first")
        planned = program.plan.masks(program.graph)
        inside = program.graph.inside  # masks inside of what goes whole do not matter
        for name, mask in (program.masks or {}).items():
            gone = name in inside and not planned[inside[name][0]][inside[name][1]]
            if not gone and not torch.equal(mask.cpu(), planned[name]):
                raise PreconditionError(f"pass 'shrink': the masks of {name} are not those of the plan")

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Cut the tensors and rebuild the stock model around them."""
        assert program.plan is not None
        model, graph, plan = base_model(program.model), program.traced, program.plan
        if plan.target_parameters == graph.parameters():
            return PassResult(replace(program, masks=None), modified=False)
        with unchanged(self.name, model.named_parameters):  # of which the compact model holds some as they are
            compact = build_compact(model, graph, plan.kept)
        return PassResult(replace(program, model=compact, masks=None), modified=True)

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """The planned tensors, bit for bit, and layers that compute the same."""
        assert before.plan is not None
        dense, compact, plan = base_model(before.model), base_model(after.model), before.plan
        gathered = Gathered(dense, compact, before.traced, plan.kept)
        gathered.check(plan.target_parameters)
        if compact is dense:
            return (Parity(self.name, 0.0, 0.0),)
        constants = gathered.constants
        same = widened((b for b in dense.buffers() if id(b) in constants), lambda buffer: constants[id(buffer)])
        with masked(dense, before.traced, plan.masks(before.traced)), same:
            course = course_of(dense, before.probe)
        return (compare_blocks(gathered, course, before.probe),)
