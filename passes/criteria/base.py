"""What a criterion is, what it needs, and what criteria share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Protocol, TypeAlias

import torch
from peft import PeftModel
from torch import distributed
from transformers import PreTrainedModel

from passes.criteria.importance import MovingAverage
from passes.graph import PruningGraph
from passes.models import DenseWeight, Weight, lora_weights, parameter_at

AnyModel: TypeAlias = "PreTrainedModel | PeftModel"


Finite: TypeAlias = "bool | torch.Tensor"
"""Whether something was finite; [] bool on a device where nobody needs to wait for the answer."""


class Needs(StrEnum):
    """What must have happened between ``begin`` and ``observe``."""

    WEIGHTS = "weights"
    """Nothing: only the weights are looked at."""
    ACTIVATIONS = "activations"
    """Forward passes."""
    GRADIENTS = "gradients"
    """Forward and backward passes of the loss; the criterion asks for the gradients that it wants in ``begin``."""
    ADAPTER = "adapter"
    """Backward passes of a model that wears a LoRA adapter, whose gradients are read."""


class Criterion(Protocol):
    """Ranks units, while the adapters train or on calibration data alone."""

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """The current scores [units], fp32 on any device, not negative, a dimension name.

        They are all that is kept from one ``observe`` to the next: a checkpoint saves these tensors and writes them
        back in place, and the criterion goes on as if it had never stopped.
        """
        ...

    def begin(self, model: AnyModel) -> None:
        """Called before the first forward pass, when the masks are on and the optimizer has its parameters."""
        ...

    def observe(self, model: AnyModel, loss_scale: float = 1.0) -> Finite:
        """Called after the backward passes of a step, before clipping and before the optimizer moves anything.

        The gradients of the adapters are unscaled; those of all else, which no gradient scaler knows, carry
        ``loss_scale``. Returns False if they were not finite, so that this step could not be taken in.
        """
        ...

    def end(self, model: AnyModel) -> None:
        """Called when no step is to be seen for a while, and after training, also if it failed; may be called twice.

        ``begin`` may be called again. The scores stay.
        """
        ...


class Stateless:
    """A criterion that changes nothing in the model."""

    def begin(self, model: AnyModel) -> None:
        """Nothing to prepare."""

    def end(self, model: AnyModel) -> None:
        """Nothing to restore."""


class Averaged:
    """A criterion whose scores are the moving average of those of each step; that average is all its state."""

    def __init__(self, graph: PruningGraph, smoothing: float) -> None:
        self._graph = graph
        self._average = MovingAverage(graph, smoothing)

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """The moving averages."""
        return self._average.scores

    def _take_in(self, scores: Mapping[str, torch.Tensor]) -> Finite:
        """Average one step's scores, unless one of them is not finite; whether they were taken in."""
        return self._average.update(scores)


def weight_names(graph: PruningGraph) -> list[str]:
    """The parameters whose entries belong to units."""
    return sorted({name for dimension in graph.dimensions for name in graph.scored(dimension)})


def merged_weights(model: AnyModel, names: Iterable[str]) -> dict[str, Weight]:
    """Weights as the model computes with them: W0 + sBA where an adapter is on. Views, no copies."""
    weights: dict[str, Weight] = {name: DenseWeight(parameter_at(model, name)) for name in names}
    if isinstance(model, PeftModel):
        weights.update((name, worn) for name, worn in lora_weights(model).items() if name in weights)
    return weights


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of all ranks' tensors, in place."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def mean_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of all ranks' tensors, in place. DDP sees to the adapters' gradients only: it was set up before."""
    if distributed.is_available() and distributed.is_initialized():
        sum_over_ranks(tensor).div_(distributed.get_world_size())
    return tensor


def least_over_ranks(value: int, device: torch.device) -> int:
    """The least of all ranks' numbers; ``device`` is where the ranks' backend communicates."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    found = torch.tensor(value, device=device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MIN)
    return int(found)
