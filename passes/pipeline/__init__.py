"""The framework: passes, the program that flows through them, what a run shares, their records and artifacts."""

from passes.pipeline.artifacts import Artifact
from passes.pipeline.choice import save_choice, with_choice
from passes.pipeline.compensation import WEIGHTS_FILE, Compensation, Solved
from passes.pipeline.context import Progress, RunContext, device_named, dtype_named, silent
from passes.pipeline.framework import Pass, PassResult, PreservingPass
from passes.pipeline.keeping import caller_state_kept
from passes.pipeline.kept import WHOLE, digests, told
from passes.pipeline.pipeline import Handed, PassEntry, Pipeline
from passes.pipeline.plain import plain
from passes.pipeline.program import Program
from passes.pipeline.records import PassRecord, measured
from passes.pipeline.recovery import Recovery
from passes.pipeline.snapshots import Snapshot, load_snapshots
from passes.pipeline.watch import Watch, Watched, unwatched

__all__ = [
    "WEIGHTS_FILE",
    "WHOLE",
    "Artifact",
    "Compensation",
    "Handed",
    "Pass",
    "PassEntry",
    "PassRecord",
    "PassResult",
    "Pipeline",
    "PreservingPass",
    "Program",
    "Progress",
    "Recovery",
    "RunContext",
    "Snapshot",
    "Solved",
    "Watch",
    "Watched",
    "caller_state_kept",
    "device_named",
    "digests",
    "dtype_named",
    "load_snapshots",
    "measured",
    "plain",
    "save_choice",
    "silent",
    "told",
    "unwatched",
    "with_choice",
]
