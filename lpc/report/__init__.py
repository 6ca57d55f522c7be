"""What a run tells: the report, the manifest, curves."""

from lpc.report.curve import Panel, Point, draw
from lpc.report.front import HIGHER_IS_BETTER, QUALITIES, pareto_front
from lpc.report.manifest import complete, record, write_manifest
from lpc.report.page import comparison_page, family_page
from lpc.report.render import (
    SPEED_HEADER,
    asked_words,
    heldout_rows,
    package_rows,
    runs_on,
    show_measure,
    size_rows,
    speed_rows,
    table,
    unsure_line,
)
from lpc.report.report import BeforeAfter, Completed, HeldOut, Merging, PackageCost, PredictedLatency, Report
from lpc.report.untouched import untouched

__all__ = [
    "HIGHER_IS_BETTER",
    "QUALITIES",
    "SPEED_HEADER",
    "BeforeAfter",
    "Completed",
    "HeldOut",
    "Merging",
    "PackageCost",
    "Panel",
    "Point",
    "PredictedLatency",
    "Report",
    "asked_words",
    "comparison_page",
    "complete",
    "draw",
    "family_page",
    "heldout_rows",
    "package_rows",
    "pareto_front",
    "record",
    "runs_on",
    "show_measure",
    "size_rows",
    "speed_rows",
    "table",
    "unsure_line",
    "untouched",
    "write_manifest",
]
