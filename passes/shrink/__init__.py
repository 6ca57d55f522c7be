"""Building the smaller model: cutting tensors, its configuration, layers numbered anew."""

from passes.shrink.config import compact_config
from passes.shrink.cut import build_compact, cutting_of
from passes.shrink.gathered import Gathered
from passes.shrink.layers import why_another_model
from passes.shrink.rescale import SCALE
from passes.shrink.shrink import ShrinkPass

__all__ = ["SCALE", "Gathered", "ShrinkPass", "build_compact", "compact_config", "cutting_of", "why_another_model"]
