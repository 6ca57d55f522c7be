"""Multiples: what MLP widths are rounded to, and the counts of units that this leaves."""

from __future__ import annotations

from passes.graph import Kind, PruningGraph, Width

WIDE = 1024
"""MLPs at least this wide are rounded to ``COARSE`` channels, narrower ones to ``FINE``."""
COARSE = 64
FINE = 8


def default_multiple(size: int) -> int:
    """What MLP widths are rounded to unless the user says otherwise: 64 from 1024 channels up, else 8."""
    return COARSE if size >= WIDE else FINE


def multiple_of(graph: PruningGraph) -> int | None:
    """What a graph's MLP widths are rounded to unless the user says otherwise; None if none of them can go."""
    fine = [width.size for width in graph.widths if width.kind.is_fine and width.kind is not Kind.HIDDEN]
    return default_multiple(max(fine)) if fine else None


def reachable_counts(width: Width, multiple: int | None) -> list[int]:
    """The counts a result may have, ascending: of channels the multiples and the dense count, of others all."""
    if not width.kind.is_fine:
        return list(width.counts)
    step = multiple or default_multiple(width.size)
    return [count for count in width.counts if count % step == 0 or count == width.size]
