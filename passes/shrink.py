"""Shrink: cut what the plan does not keep out of the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch_pruning as tp
from peft import PeftModel
from transformers import PreTrainedModel

from passes.errors import PostconditionError, PreconditionError
from passes.graph import Dimension, Kind
from passes.infra import PassResult, PreservingPass
from passes.models import base_model, count_parameters
from passes.parity import Parity
from passes.plan import Plan
from passes.program import Program
from passes.stock import build_stock, compact_config


@dataclass(frozen=True)
class ShrinkPass(PreservingPass):
    """Removes the units for real. The result is a stock transformers model with a plain configuration.

    Ensures that it computes what the masked model computed, and that its parameter count is the plan's.
    """

    name = "shrink"

    def requires(self, program: Program) -> None:
        """A plan, and no adapter any more."""
        super().requires(program)
        if program.plan is None or isinstance(program.model, PeftModel):
            raise PreconditionError("pass 'shrink' needs a plan and a merged model: run DecidePass and MergePass first")

    def call(self, program: Program) -> PassResult:
        """Cut the tensors and rebuild the stock model around them."""
        assert program.plan is not None
        model, graph, plan = base_model(program.model), program.traced, program.plan
        if plan.target_parameters == graph.parameters():
            return PassResult(replace(program, masks=None), modified=False)
        for dimension in graph.dimensions:
            _cut(model, dimension, plan)
        counts = plan.counts()
        groups, channels = (counts[graph.of_kind(kind)[0].name] for kind in (Kind.KV_GROUPS, Kind.MLP_CHANNELS))
        config = compact_config(model.config, groups=groups, channels=channels, head_dim=graph.head_dim)
        compact = build_stock(config, model.state_dict(), like=model)
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


def _cut(model: PreTrainedModel, dimension: Dimension, plan: Plan) -> None:
    kept = set(plan.kept[dimension.name])
    gone = [unit for unit in range(dimension.size) if unit not in kept]
    if not gone:
        return
    for part in dimension.weights:
        prune = tp.prune_linear_out_channels if part.axis == 0 else tp.prune_linear_in_channels
        prune(model.get_submodule(part.module), part.indices(gone))
