"""How what goes is shared between heads and channels, as a sentence of the report."""

from __future__ import annotations

from collections.abc import Sequence

from passes.decide import BalanceTried, ScoreReport
from passes.pipeline import PassRecord


def balance_notes(passes: Sequence[PassRecord]) -> tuple[str, ...]:
    """One note where ways to share what goes were measured: each with its loss, the one that was taken first."""
    found = [record.report for record in passes if isinstance(record.report, ScoreReport) and record.report.ways]
    return tuple(_note(report.ways) for report in found)


def _note(ways: Sequence[BalanceTried]) -> str:
    told = "; ".join(map(str, ways))
    return f"of {len(ways)} ways to share what goes between widths, the first left the least loss and was taken: {told}"
