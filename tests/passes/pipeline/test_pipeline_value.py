"""A pipeline is a value: it can be read, changed and recorded; and it lets go of what a pass has replaced."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import dataclass, replace

import pytest
from workbench import build_model, traced

from passes.errors import OptionError
from passes.pipeline import Handed, Pass, PassEntry, PassResult, Pipeline, Program, RunContext


@dataclass(frozen=True)
class Adding(Pass):
    """Does nothing, with an option."""

    amount: int = 1
    name = "adding"

    def call(self, program: Program, run: RunContext) -> PassResult:
        return PassResult(program, modified=False)


class Other(Adding):
    name = "other"


class Replacing(Adding):
    """Puts a copy in the place of the model."""

    name = "replacing"

    def call(self, program: Program, run: RunContext) -> PassResult:
        return PassResult(replace(program, model=copy.deepcopy(program.model)), modified=True)


PIPELINE = Pipeline([Adding(1), Adding(2), Other(3)])


def test_a_pipeline_tells_its_passes_with_their_options() -> None:
    assert Pipeline([PIPELINE, Other(4)]).entries == tuple(
        PassEntry(name=name, options={"amount": amount})
        for name, amount in (("adding", 1), ("adding", 2), ("other", 3), ("other", 4))
    )
    assert (len(PIPELINE), PIPELINE.names) == (3, ("adding", "adding", "other"))


def test_inserting_makes_a_new_pipeline() -> None:
    assert [p.amount for p in PIPELINE.insert(Adding(9), before="other")] == [1, 2, 9, 3]  # type: ignore[attr-defined]
    assert [p.amount for p in PIPELINE.insert(Adding(9), after="adding")] == [1, 9, 2, 3]  # type: ignore[attr-defined]
    assert PIPELINE.after("adding").names == ("adding", "other")
    assert len(PIPELINE) == 3


@pytest.mark.parametrize("place", [{}, {"before": "other", "after": "other"}, {"before": "nowhere"}], ids=str)
def test_a_pass_is_inserted_in_one_place_that_is_there(place: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=r"one place|no pass 'nowhere'; it has adding, adding, other"):
        PIPELINE.insert(Adding(), **place)


def test_a_model_goes_as_soon_as_a_pass_has_replaced_it() -> None:
    program = traced(build_model("llama"))
    first, alive = weakref.ref(program.model), []
    handed = Handed(program)
    del program

    def look(stage: str, done: int, total: int) -> None:
        gc.collect()
        alive.append((stage, done, first() is not None))

    Pipeline([Adding(), Replacing(), Other()]).run(handed, RunContext(progress=look))
    expected = [("adding", 0, True), ("adding", 1, True), ("replacing", 0, True), ("replacing", 1, False)]
    assert alive == [*expected, ("other", 0, False), ("other", 1, False)]
    with pytest.raises(RuntimeError, match="handed over already"):
        handed.take()
