"""Nothing waits for a device at each step: no value is read into Python, and operations are few."""

from __future__ import annotations

import pytest
import torch
from criteria_workbench import batch_of
from handmade import worn
from waiting import Waits

from passes.criteria import make_criterion
from passes.graph import PruningGraph
from passes.options import ImportanceOptions

STEPPED = ("loraprune", "loraprune-code", "taylor", "fisher", "mask-fisher", "wanda", "flap")


def observed(name: str, family: str, graph: PruningGraph | None = None) -> Waits:
    """What the second ``observe`` of a criterion asks for."""
    model, found = worn(family)
    criterion = make_criterion(name, graph or found, ImportanceOptions(normalise=True), 0)
    criterion.begin(model)
    for _ in range(2):
        model(**batch_of(family)).loss.backward()
        with Waits() as waits:
            finite = criterion.observe(model)
    assert isinstance(finite, torch.Tensor)
    assert finite.dim() == 0
    criterion.end(model)
    return waits


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", STEPPED)
def test_no_criterion_that_is_asked_at_each_step_reads_a_value(name: str, family: str) -> None:
    waits = observed(name, family)
    assert not waits.counts
    assert waits.operations


def test_obs_reads_a_few_values_however_many_units_there_are() -> None:
    waits = observed("obs", "llama")
    assert sum(waits.counts.values()) < 20
