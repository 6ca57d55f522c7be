"""How many units of each dimension are gone after each event of a schedule, and the masks on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from passes.budget import Scores, Solver, best_units
from passes.graph import Masks, PruningGraph
from passes.options import Layout

Counts = Mapping[str, int]
"""Kept units a dimension of each width, by the width's name."""


class MaskPath:
    """The masks at each event of a schedule: in the uniform layout along a ramp of counts, in the layout per layer by
    what the scores say at each share of the cost that is to go.

    ``start``: what the masks met before the first event, if they are not all on. In the uniform layout a width then
    stays between the counts of the two; where rounding makes the later one the larger, its units come back at once.
    """

    def __init__(self, solver: Solver, shares: Sequence[float], start: Solver | None = None) -> None:
        self._solver, self._shares = solver, list(shares)
        self._ramp: Sequence[Counts] = ()
        if solver.target.layout is Layout.UNIFORM and not solver.meter.graph.depth:
            self._ramp = ramp(solver.meter.graph, solver.uniform_counts, self._shares)
            if start is not None:
                self._ramp = [_between(start.uniform_counts, counts, solver.uniform_counts) for counts in self._ramp]

    def masks(self, event: int, scores: Scores, *, among: Masks | None = None) -> dict[str, torch.Tensor]:
        """The masks from an event on; the last event's meet the target. ``among`` as for ``best_units``."""
        graph = self._solver.meter.graph
        if self._ramp:
            return best_units(graph, scores, graph.uniform(self._ramp[event]), among=among)
        return best_units(graph, scores, self._solver.kept(scores, self._shares[event], among), among=among)


def _between(start: Counts, counts: Counts, end: Counts) -> dict[str, int]:
    """The counts a width, each moved into the range between its start and its end."""
    limits = {name: sorted((start[name], end[name])) for name in counts}
    return {name: min(max(each, limits[name][0]), limits[name][1]) for name, each in counts.items()}


def width_parameters(graph: PruningGraph, name: str) -> int:
    """Parameters that go with one unit less in every dimension of a width, all other widths being dense."""
    return sum(graph.unit_parameters(dimension) for dimension in graph.of_width(name))


def ramp(graph: PruningGraph, target: Counts, shares: Sequence[float]) -> list[dict[str, int]]:
    """Counts a width at each share of the target's cost.

    The curve is one of cost: heads and experts, the coarse units, go at the point of the curve nearest to their own
    share (a tie goes early), and the channels make up the difference, each MLP in proportion to what it must lose.
    Nothing comes back on the way, and the last counts are the target's.
    """
    to_go = {width.name: width.size - target[width.name] for width in graph.widths}
    cost = {width.name: width_parameters(graph, width.name) for width in graph.widths}
    total = sum(cost[name] * units for name, units in to_go.items())
    fine = [width.name for width in graph.widths if width.kind.is_fine]
    fine_total = sum(cost[name] * to_go[name] for name in fine)
    path, gone = [], dict.fromkeys(to_go, 0)
    for share in shares:
        for name in set(to_go) - set(fine):
            gone[name] = min(to_go[name], int(share * to_go[name] + 0.5))
        rest = share * total - sum(cost[name] * gone[name] for name in set(to_go) - set(fine))
        for name in fine:
            wanted = round(rest / fine_total * to_go[name]) if fine_total else 0
            gone[name] = max(gone[name], min(to_go[name], wanted))
        path.append({width.name: width.size - gone[width.name] for width in graph.widths})
    return [*path[:-1], dict(target)]
