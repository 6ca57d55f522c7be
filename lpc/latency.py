"""The latency model that a budget needs: measured on this machine, or read from its cache."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedModel

from lpc.report import PredictedLatency
from passes.budget import LatencyModel
from passes.graph import Plan, PruningGraph
from passes.models import base_model
from passes.options import AUTO, Budget
from passes.pipeline import Progress, plain, silent
from passes.ranks import on_first, told_by_first


def latency_for(
    model: PreTrainedModel | PeftModel,
    graph: PruningGraph,
    budget: Budget,
    progress: Progress = silent,
    attention: str = AUTO,
) -> LatencyModel | None:
    """The latency model for a budget that limits latency, else None. Raises UnsupportedModelError.

    ``attention`` is that of the ONNX package (``OnnxOptions``), so that the blocks which are timed are those of it.
    Of several processes the first one measures, and all go by its table.
    """
    if not budget.needs_latency:
        return None
    from exporters.latency import Curve, LatencyTable, latency_model

    asked = base_model(model), graph, budget.at
    table = on_first(lambda: latency_model(*asked, runtime=budget.runtime, attention=attention, progress=progress))
    told = told_by_first(None if table is None else (table.constant, plain(table.curves)))
    if table is not None or told is None:
        return table
    curves = {name: Curve(tuple(curve["counts"]), tuple(curve["seconds"])) for name, curve in told[1].items()}
    return LatencyTable(budget.at, graph, told[0], curves)


def predicted(latency: LatencyModel | None, budget: Budget, plan: Plan) -> PredictedLatency | None:
    """What the latency model says of the dense model and of a plan, for the report; None without a model."""
    if latency is None:
        return None
    return PredictedLatency(
        workload=str(budget.at),
        runtime=budget.runtime,
        dense_s=latency.seconds({}),
        pruned_s=latency.seconds(plan.kept),
    )
