from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from workbench import build_model, traced

from passes.errors import ModelError, PassError, PostconditionError, PreconditionError
from passes.graph import Kind
from passes.models import Parity
from passes.options import ImportanceOptions
from passes.pipeline import Pass, PassResult, Pipeline, PreservingPass, Program, RunContext, plain


@pytest.fixture(scope="module")
def program() -> Program:
    return traced(build_model("llama"))


@dataclass(frozen=True)
class Doing(Pass):
    """Does whatever it is given to do, wherever the framework asks."""

    name = "doing"
    in_call: Callable[[], object] = lambda: None
    in_requires: Callable[[], object] = lambda: None
    parity: tuple[Parity, ...] = ()

    def requires(self, program: Program) -> None:
        self.in_requires()

    def call(self, program: Program, run: RunContext) -> PassResult:
        self.in_call()
        return PassResult(dataclasses.replace(program), modified=True, report=ImportanceOptions())

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        return self.parity


@dataclass(frozen=True)
class Nudging(PreservingPass):
    """Claims to preserve, and multiplies one weight."""

    factor: float
    name = "nudging"

    def call(self, program: Program, run: RunContext) -> PassResult:
        with torch.no_grad():
            program.model.model.layers[1].mlp.down_proj.weight.mul_(self.factor)
        return PassResult(program, modified=True)


class Named(Doing):
    name = "named"


def fail(error: Exception) -> Callable[[], object]:
    def raising() -> object:
        raise error

    return raising


def test_requires_is_run_before_call(program: Program) -> None:
    ran: list[str] = []
    with pytest.raises(PreconditionError, match="not yet"):
        Doing(lambda: ran.append("call"), fail(PreconditionError("not yet")))(program)
    assert ran == []


def test_ensures_is_run_and_a_parity_that_fails_is_an_error_with_pass_and_number(program: Program) -> None:
    with pytest.raises(PostconditionError, match=r"'doing'.*logits: relative difference 3\.00e-03 > 1e-05"):
        Doing(parity=(Parity("fine", 0.0, 0.0), Parity("logits", 3e-3, 1e-5)))(program)


@pytest.mark.parametrize("where", ["in_call", "in_requires"])
def test_a_foreign_exception_becomes_a_pass_error_that_names_the_pass(program: Program, where: str) -> None:
    with pytest.raises(PassError, match=r"'doing' failed: ZeroDivisionError: by nothing") as caught:
        Doing(**{where: fail(ZeroDivisionError("by nothing"))})(program)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_lpc_errors_pass_through_and_interrupts_are_not_swallowed(program: Program) -> None:
    with pytest.raises(ModelError, match="as it is"):
        Doing(fail(ModelError("as it is")))(program)
    with pytest.raises(KeyboardInterrupt):
        Doing(fail(KeyboardInterrupt()))(program)


def test_a_record_holds_options_seconds_memory_parity_and_report(program: Program) -> None:
    parity = Parity("logits", 0.0, 0.0)
    before = program.history
    record = Doing(parity=(parity,))(program).program.history[-1]
    assert record.name == "doing"
    assert record.seconds > 0
    assert record.peak_memory_bytes > 50e6
    assert record.modified
    assert record.parity == (parity,)
    assert record.report == ImportanceOptions()
    assert program.history == before


def test_a_preserving_pass_that_changes_the_response_is_caught(program: Program) -> None:
    with pytest.raises(PostconditionError, match=r"'nudging' changed what the model computes.*layer 1 is the first"):
        Nudging(2)(program)
    Nudging(0.5)(program)


def test_a_preserving_pass_needs_a_traced_program() -> None:
    with pytest.raises(PreconditionError, match="run TracePass first"):
        Nudging(1)(Program.start(build_model("llama")))


def test_a_pipeline_is_a_pass_and_nests(program: Program) -> None:
    sequence = Pipeline([Doing(), Pipeline([Named(), Doing()])])
    assert isinstance(sequence, Pass)
    result = sequence(program)
    assert result.modified
    assert [r.name for r in result.program.history[len(program.history) :]] == ["doing", "named", "doing"]


@pytest.mark.parametrize(("before", "ran"), [((), "none"), ((Doing(), Doing()), "doing, doing")])
def test_an_error_in_a_pipeline_names_the_failing_pass_and_those_already_run(
    program: Program, before: tuple[Pass, ...], ran: str
) -> None:
    with pytest.raises(ModelError) as caught:
        Pipeline([*before, Named(fail(ModelError("broken"))), Doing()])(program)
    assert caught.value.__notes__ == [f"failing pass: named; already run: {ran}"]


def test_a_pipeline_reports_progress(program: Program) -> None:
    told: list[tuple[str, int, int]] = []
    Pipeline([Doing(), Named()])(program, RunContext(progress=lambda *stage: told.append(stage)))
    assert told == [("doing", 0, 1), ("doing", 1, 1), ("named", 0, 1), ("named", 1, 1)]


def test_plain_values_are_ready_for_json() -> None:
    values = plain({"a": ImportanceOptions(), "b": (1, Path("x")), Kind.KV_GROUPS: None, "c": Kind.MLP_CHANNELS})
    assert json.loads(json.dumps(values)) == {
        "a": {"form": "square", "normalise": None, "quadratic": False, "smoothing": 0.9},
        "b": [1, "x"],
        "kv_groups": None,
        "c": "mlp_channels",
    }
