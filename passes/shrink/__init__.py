"""Building the smaller model: cutting tensors, its configuration, layers numbered anew."""

from passes.shrink.config import compact_config
from passes.shrink.cut import build_compact, cut_tensor, cutting_of
from passes.shrink.early import early_compact, only_cut
from passes.shrink.gathered import Gathered, gathered
from passes.shrink.layers import why_another_model
from passes.shrink.rescale import SCALE
from passes.shrink.shrink import ShrinkPass

__all__ = [
    "SCALE",
    "Gathered",
    "ShrinkPass",
    "build_compact",
    "compact_config",
    "cut_tensor",
    "cutting_of",
    "early_compact",
    "gathered",
    "only_cut",
    "why_another_model",
]
