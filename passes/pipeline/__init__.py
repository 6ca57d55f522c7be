"""The framework: passes, the program that flows through them, their records and artifacts."""

from passes.pipeline.artifacts import WEIGHTS_FILE, Compensation, Solved, load_weights
from passes.pipeline.framework import Pass, PassResult, PreservingPass, Progress, Sequential, plain, silent
from passes.pipeline.keeping import caller_state_kept
from passes.pipeline.program import Program
from passes.pipeline.records import PassRecord
from passes.pipeline.recovery import Recovery
from passes.pipeline.snapshots import Snapshot, load_snapshots

__all__ = [
    "WEIGHTS_FILE",
    "Compensation",
    "Pass",
    "PassRecord",
    "PassResult",
    "PreservingPass",
    "Program",
    "Progress",
    "Recovery",
    "Sequential",
    "Snapshot",
    "Solved",
    "caller_state_kept",
    "load_snapshots",
    "load_weights",
    "plain",
    "silent",
]
