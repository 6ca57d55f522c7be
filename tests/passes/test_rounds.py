"""Rounds of scoring, masking and solving, against the two passes that one round is, and least squares by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_compensate import DATA, llama_places, solve_by_hand
from workbench import adapted, build_model, relative, traced

from passes.compensate import CompensateOptions, CompensatePass
from passes.decide import DecidePass
from passes.errors import OptionError, PreconditionError
from passes.infra import PassResult, Sequential
from passes.masks import full_masks, masked
from passes.merge import MergePass
from passes.program import Program
from passes.rounds import RoundsOptions, RoundsPass, RoundsReport
from passes.score import ScoreOptions, ScorePass
from passes.shrink import ShrinkPass
from passes.solver import Solver, best_units
from passes.target import Target
from passes.trace import TraceOptions, TracePass

TARGET = Target(ratio=0.4)
SCORE = ScoreOptions(criterion="obs", samples=24)
SOLVE = CompensateOptions(guard=False)


def run(
    program: Program, rounds: int, *, score: ScoreOptions = SCORE, keep: bool = False, **solve: object
) -> PassResult:
    options = RoundsOptions(rounds=rounds, score=score, compensate=replace(SOLVE, **solve))
    return RoundsPass(TARGET, DATA, options, keep_originals=keep)(program)


def report_of(result: PassResult) -> RoundsReport:
    assert isinstance(result.report, RoundsReport)
    return result.report


def test_one_round_is_scoring_and_compensating() -> None:
    found = run(traced(build_model("llama")), 1).program
    passes = Sequential(ScorePass(TARGET, DATA, SCORE), CompensatePass(DATA, SOLVE))
    expected = passes(traced(build_model("llama"))).program
    assert all(torch.equal(mask, expected.masks[name]) for name, mask in found.masks.items())
    assert all(torch.equal(score, expected.scores[name]) for name, score in found.scores.items())
    state = expected.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.model.state_dict().items())


@pytest.mark.parametrize("residual", [False, True])
def test_what_projections_are_to_give_is_the_dense_model_s_in_every_round(residual: bool) -> None:
    """Without a ridge the solution does not depend on where it starts, so only the masks and the targets count."""
    dense, program = build_model("llama"), traced(build_model("llama"))
    found = run(program, 3, ridge=0.0, residual=residual).program
    kept = {name: tuple(mask.nonzero().flatten().tolist()) for name, mask in found.masks.items()}
    expected = solve_by_hand(dense, llama_places(program, kept), 1, residual=residual)
    batch = {"input_ids": DATA.ids, "attention_mask": DATA.mask}
    with torch.no_grad(), masked(found.model, found.traced, found.masks):
        actual, wanted = (model(**batch).logits[DATA.mask.bool()] for model in (found.model, expected))
    assert relative(actual, wanted) < 1e-3


def test_each_round_scores_what_the_rounds_before_left() -> None:
    program = traced(build_model("llama"))
    result = run(traced(build_model("llama")), 2)
    first = ScorePass(TARGET, DATA, SCORE)(program).program
    solver = Solver.of(TARGET, program.traced)
    half = best_units(program.traced, first.scores, solver.kept(first.scores, 0.5))
    left = CompensatePass(DATA, SOLVE)(replace(first, masks=half).expecting_itself()).program
    second = ScorePass(TARGET, DATA, SCORE)(left)
    rounds = report_of(result).rounds
    assert [each.share for each in rounds] == [0.5, 1.0]
    assert rounds[1].score.loss == pytest.approx(second.report.loss, rel=1e-6)
    assert rounds[1].score.loss != pytest.approx(rounds[0].score.loss, rel=1e-4)
    for name, mask in result.program.masks.items():
        assert not (mask & ~half[name]).any()
        on = half[name]
        assert relative(result.program.scores[name][on], second.program.scores[name][on]) < 1e-4
        assert torch.equal(result.program.scores[name][~on], first.scores[name][~on])


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_the_result_meets_the_target_and_shrinks_to_what_the_masks_compute(layout: str) -> None:
    target = replace(TARGET, layout=layout)
    trace = TracePass(TraceOptions(custom_code=layout == "per-layer"))
    rounds = RoundsPass(target, DATA, RoundsOptions(rounds=2, score=SCORE, compensate=SOLVE))
    passes = Sequential(trace, rounds, DecidePass(target, "obs"), MergePass(), ShrinkPass())
    result = passes(Program.start(build_model("llama"))).program
    assert result.plan.compensated
    assert result.plan.achieved_ratio >= 0.4
    assert sum(p.numel() for p in result.model.parameters()) == result.plan.target_parameters


def test_a_criterion_that_reads_adapters_goes_in_rounds_too() -> None:
    result = run(adapted(build_model("llama")), 2, score=replace(SCORE, criterion="loraprune"))
    shrunk = Sequential(DecidePass(TARGET, "loraprune"), MergePass(), ShrinkPass())(result.program).program
    assert shrunk.plan.achieved_ratio >= 0.4


def test_the_originals_are_kept_on_request_and_are_the_dense_ones() -> None:
    dense = build_model("llama")
    assert not run(traced(build_model("llama")), 2).program.compensation.originals
    done = run(traced(build_model("llama")), 2, keep=True).program.compensation
    assert {solved.projection for solved in done.solved if solved.changed} <= {
        name.removesuffix(".weight") for name in done.originals
    }
    assert all(torch.equal(tensor, dense.get_parameter(name)) for name, tensor in done.originals.items())


def test_a_program_that_is_masked_or_compensated_already_is_refused() -> None:
    program = traced(build_model("llama"))
    some = replace(program, masks=Solver.of(TARGET, program.traced).masks(random_scores(program)))
    with pytest.raises(PreconditionError, match="units of this one are masked"):
        run(some, 2)
    with pytest.raises(PreconditionError, match="has run on this program already"):
        run(replace(run(program, 1).program, masks=full_masks(program.traced)), 2)
    with pytest.raises(OptionError, match="rounds must be at least 1, got 0"):
        RoundsOptions(rounds=0)


def random_scores(program: Program) -> dict[str, torch.Tensor]:
    return {d.name: torch.rand(d.size) for d in program.traced.dimensions}
