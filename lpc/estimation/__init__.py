"""What a run will cost before it is begun: memory, floating-point operations and time of each stage, in closed form."""

from lpc.estimation.costs import Costs
from lpc.estimation.outlook import check_room, costs_of, estimate, look_ahead, probed, stages_to_come
from lpc.estimation.presets import estimate_presets
from lpc.estimation.result import Bill, Estimate, StageEstimate

__all__ = [
    "Bill",
    "Costs",
    "Estimate",
    "StageEstimate",
    "check_room",
    "costs_of",
    "estimate",
    "estimate_presets",
    "look_ahead",
    "probed",
    "stages_to_come",
]
