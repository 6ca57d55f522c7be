"""All that trains: attaching adapters, tuning under masks, merging, recovering."""

from passes.tuning.attach import AttachPass, DetachPass
from passes.tuning.distill import DistillOptions
from passes.tuning.merge import MergePass
from passes.tuning.recall import RecallPass
from passes.tuning.recover import RecoverOptions, RecoverPass
from passes.tuning.schedule import ONE_SHOT, Schedule
from passes.tuning.stages import SnapshotOptions
from passes.tuning.tune import TuneOptions, TunePass

__all__ = [
    "ONE_SHOT",
    "AttachPass",
    "DetachPass",
    "DistillOptions",
    "MergePass",
    "RecallPass",
    "RecoverOptions",
    "RecoverPass",
    "Schedule",
    "SnapshotOptions",
    "TuneOptions",
    "TunePass",
]
