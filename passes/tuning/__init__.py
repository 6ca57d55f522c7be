"""All that trains: attaching adapters, tuning under masks, merging, recovering."""

from passes.tuning.attach import AttachPass, DetachPass
from passes.tuning.checkpoints import last_whole, seal
from passes.tuning.merge import MergePass, adapted_layers, merge_into
from passes.tuning.positions import Mixture, Side, summed_loss
from passes.tuning.recall import RecallPass
from passes.tuning.recover import RecoverPass
from passes.tuning.settle import settled
from passes.tuning.stages import staged_run
from passes.tuning.tune import TunePass
from passes.tuning.unpack import UnpackPass

__all__ = [
    "AttachPass",
    "DetachPass",
    "MergePass",
    "Mixture",
    "RecallPass",
    "RecoverPass",
    "Side",
    "TunePass",
    "UnpackPass",
    "adapted_layers",
    "last_whole",
    "merge_into",
    "seal",
    "settled",
    "staged_run",
    "summed_loss",
]
