"""Watching a run while its adapters train: what is measured on held-out data on the way, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from peft import PeftModel
from transformers import PreTrainedModel

HeldOutMeasures: TypeAlias = Callable[[PreTrainedModel | PeftModel, int], Mapping[str, float]]
"""Measures by name of a model on held-out data, so many rows a batch."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What was seen after ``step`` of ``total`` optimizer steps.

    ``measures`` are those on held-out data by name, of the model as it is masked then; ``removed`` is the share of its
    parameters that is masked, ``final`` whether no unit will go or come back any more.
    """

    step: int
    total: int
    measures: Mapping[str, float]
    removed: float
    final: bool


Watch: TypeAlias = Callable[[Watched], None]
"""Told what was seen; what it raises ends the run."""


def unwatched(seen: Watched) -> None:
    """A Watch that tells nobody."""
