"""The Pareto front: what no other is at least as good as in both cost and quality, and better in one."""

from __future__ import annotations

from collections.abc import Mapping

QUALITIES = ("perplexity", "accuracy", "similarity", "loss")
"""The held-out measures that a model may be judged by; what shows one shows the first that there is."""

HIGHER_IS_BETTER = ("accuracy", "similarity", "neighbours")
"""Of the held-out measures; the others are better when they are lower."""


def pareto_front(points: Mapping[str, tuple[float, float]], measure: str) -> frozenset[str]:
    """The names on the front, of ``(cost, quality)`` by name. Less cost is better; the measure says what quality is."""
    sign = -1.0 if measure in HIGHER_IS_BETTER else 1.0
    best, found = float("inf"), set[str]()
    for name, (cost, quality) in sorted(points.items(), key=lambda each: (each[1][0], sign * each[1][1])):
        alike = found and any(points[other] == (cost, quality) for other in found)
        if sign * quality < best or alike:
            best = min(best, sign * quality)
            found.add(name)
    return frozenset(found)
