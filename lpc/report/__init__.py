"""What a run tells: the report, the manifest, curves."""

from lpc.report.family import DENSE_ONNX, FamilyReport
from lpc.report.manifest import refresh, write_manifest
from lpc.report.report import HeldOut, Measure, PredictedLatency, Report, heldout_rows, runs_on, size_rows, speed_rows
from lpc.report.untouched import untouched

__all__ = [
    "DENSE_ONNX",
    "FamilyReport",
    "HeldOut",
    "Measure",
    "PredictedLatency",
    "Report",
    "heldout_rows",
    "refresh",
    "runs_on",
    "size_rows",
    "speed_rows",
    "untouched",
    "write_manifest",
]
