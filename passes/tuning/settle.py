"""Options of tuning with nothing left open."""

from __future__ import annotations

from dataclasses import replace

from passes.criteria import best_criterion, criterion_named
from passes.graph import PruningGraph
from passes.options import AUTO, ONE_SHOT, Schedule, TuneOptions


def settled(options: TuneOptions, graph: PruningGraph | None = None) -> TuneOptions:
    """The options with nothing left open, and with what the criterion sets itself, as ``loraprune-code`` does.

    The criterion ``auto`` is the best that ranks the graph; on a progressive schedule, or without a graph, it is
    ``loraprune``. No schedule is ``ONE_SHOT`` for a criterion that ranks on calibration data, else ``Schedule()``.
    """
    progressive = options.schedule is not None and not options.schedule.one_shot
    name = options.criterion
    if name == AUTO:
        name = "loraprune" if progressive or graph is None else best_criterion(graph)
    entry = criterion_named(name)
    schedule = options.schedule or (ONE_SHOT if entry.one_shot else Schedule())
    importance, revival = entry.settle(options.importance), options.revival and entry.revival
    return replace(options, criterion=name, schedule=schedule, importance=importance, revival=revival)
