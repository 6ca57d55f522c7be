"""The latency model that a budget needs: measured on this machine, or read from its cache."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedModel

from passes.budget import Budget, LatencyModel
from passes.graph import PruningGraph
from passes.infra import Progress, silent
from passes.models import base_model


def latency_for(
    model: PreTrainedModel | PeftModel, graph: PruningGraph, budget: Budget, progress: Progress = silent
) -> LatencyModel | None:
    """The latency model for a budget that limits latency, else None. Raises UnsupportedModelError."""
    if budget.latency is None:
        return None
    from exporters.latency import latency_model  # loads onnxruntime

    return latency_model(base_model(model), graph, budget.at, runtime=budget.runtime, progress=progress)
