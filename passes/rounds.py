"""Rounds: score, mask a part of what must go and solve the rest anew, several times, without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset

from passes.budget import LatencyModel
from passes.calibration import Collate, Row
from passes.compensate import CompensateOptions, CompensatePass, calibration_batches, solved_weights, unlabelled
from passes.compensation import Compensation, Solved
from passes.errors import OptionError, PreconditionError
from passes.infra import Pass, PassResult, Progress, plain, silent
from passes.masks import Masks, full_masks, masked
from passes.models import evaluation_mode
from passes.parity import Parity, rounding_tolerance
from passes.plan import fingerprint
from passes.program import Program
from passes.resolve import Resolver, find_sites
from passes.score import ScoreOptions, ScorePass, ScoreReport
from passes.solver import Scores, Solver, best_units
from passes.streams import Sides
from passes.target import Target


@dataclass(frozen=True, kw_only=True)
class RoundsOptions:
    """In how many ``rounds``, and how each scores and compensates; the guard of ``compensate`` is not used."""

    rounds: int = 4
    score: ScoreOptions = ScoreOptions(criterion="obs")
    compensate: CompensateOptions = CompensateOptions()

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise OptionError(f"rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True)
class Round:
    """One round: the share of the target that was gone after it, what scoring reported before, the projections."""

    share: float
    score: ScoreReport
    projections: tuple[Solved, ...]


@dataclass(frozen=True)
class RoundsReport:
    """The rounds in order; ``skipped`` names the projections that were left as they are, and why."""

    rounds: tuple[Round, ...]
    skipped: Mapping[str, str]


class RoundsPass(Pass):
    """Masks down to the target in rounds; each scores the model as the rounds before left it, masked and compensated.

    After the round r of n, r/n of the cost that must go is gone, and no unit comes back. What each projection is to
    give is always what it gives in the dense model (``passes.compensate``), whose weights are held until the end. One
    round is ``ScorePass`` and ``CompensatePass``. The scores that are left in the program are, of a unit that went,
    those of the round in which it went, of the others those of the last round.

    ``data``, ``collate`` and ``latency`` are as in ``ScorePass``, ``keep_originals`` as in ``CompensatePass``.
    """

    name = "rounds"

    def __init__(
        self,
        target: Target,
        data: Dataset[Row],
        options: RoundsOptions = RoundsOptions(),
        progress: Progress = silent,
        collate: Collate | None = None,
        latency: LatencyModel | None = None,
        *,
        keep_originals: bool = False,
    ) -> None:
        self._target, self._data, self._options, self._progress = target, data, options, progress
        self._collate, self._latency, self._keep_originals = collate, latency, keep_originals
        self._score = ScorePass(target, data, options.score, progress, collate, latency)
        self._compensate = CompensatePass(data, options.compensate, progress, collate)

    @property
    def options(self) -> Mapping[str, Any]:
        """Target and options as plain values."""
        return {"target": plain(self._target), **plain(self._options)}

    def requires(self, program: Program) -> None:
        """A traced program of which nothing is masked; and what scoring and compensation need."""
        self._score.requires(program)
        if program.masks is not None and not all(mask.all() for mask in program.masks.values()):
            raise PreconditionError("pass 'rounds' starts from the dense model, and units of this one are masked")
        self._compensate.requires(replace(program, masks=full_masks(program.traced)))

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """No projection's error on the calibration data has risen in the last round."""
        return self._compensate.ensures(before, after)

    def call(self, program: Program) -> PassResult:
        """Score, mask and solve in turn; leaves scores, masks and the compensation in the program."""
        graph, source = program.traced, fingerprint(program.model)
        solver = Solver.of(self._target, graph, self._latency)
        masks, scores, rounds = full_masks(graph), {d.name: torch.zeros(d.size) for d in graph.dimensions}, []
        originals: dict[str, torch.Tensor] = {}
        difference, skipped = 0.0, dict[str, str]()
        for number in range(1, self._options.rounds + 1):
            share = number / self._options.rounds
            scored = self._score.call(replace(program, masks=masks))
            assert scored.program.scores is not None
            assert isinstance(scored.report, ScoreReport)
            scores = _still_there(scores, scored.program.scores, masks)
            kept = solver.kept(scored.program.scores, share, among=masks)
            masks = best_units(graph, scored.program.scores, kept, among=masks)
            resolver, skipped = self._solve(program, masks, originals)
            rounds.append(Round(share, scored.report, tuple(resolver.solved) if resolver else ()))
            difference = max(difference, resolver.difference if resolver else 0.0)
            self._progress("rounds", number, self._options.rounds)
        kept_back = originals if self._keep_originals else {}
        weights = solved_weights(program.model, originals)
        done = Compensation(rounds[-1].projections, kept_back, weights, source, self._compensate.options)
        result = replace(program, masks=masks, scores=scores, compensation=done).expecting_itself()
        parity = Parity("rounds", difference, rounding_tolerance(graph.dtype))
        return PassResult(result, bool(originals), RoundsReport(tuple(rounds), skipped), (parity,))

    @torch.no_grad()
    def _solve(
        self, program: Program, masks: Masks, originals: dict[str, torch.Tensor]
    ) -> tuple[Resolver | None, dict[str, str]]:
        """Solve under the masks, and fill in the ``originals`` of what changes; None where nothing is masked yet."""
        if all(mask.all() for mask in masks.values()):
            return None, {}
        model, options = program.model, self._options.compensate
        with masked(model, program.traced, masks) as hooks, evaluation_mode(model):
            sides = Sides(model, hooks, originals)
            rows = unlabelled(model, calibration_batches(model, self._data, options, self._collate))
            sites, skipped = find_sites(sides, program.traced, masks, rows[0])
            resolver = Resolver(sides, rows, sites, residual=options.residual)
            resolver.run(options.ridge, self._progress)
        return resolver, skipped


def _still_there(before: Scores, now: Scores, masks: Masks) -> dict[str, torch.Tensor]:
    """The scores of this round where units are still on, and those before where they are not."""
    return {name: torch.where(masks[name], now[name], before[name]) for name in now}
