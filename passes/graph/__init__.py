"""What can be removed and what it costs: dimensions, units, slices, masks, the plan. Knows no torch model."""

from passes.graph.dimensions import Dimension, Slice, Stream, Width
from passes.graph.graph import Cost, PruningGraph
from passes.graph.kept import Kept, count_of
from passes.graph.kinds import Kind, Role
from passes.graph.masks import Masks, full_masks
from passes.graph.names import LANE, ends_in, layer_path, layer_prefix, layerless
from passes.graph.plan import COMPENSATED, MEANINGFUL, PLAN_FILE, Plan
from passes.graph.renumber import Renumbering, present

__all__ = [
    "COMPENSATED",
    "LANE",
    "MEANINGFUL",
    "PLAN_FILE",
    "Cost",
    "Dimension",
    "Kept",
    "Kind",
    "Masks",
    "Plan",
    "PruningGraph",
    "Renumbering",
    "Role",
    "Slice",
    "Stream",
    "Width",
    "count_of",
    "ends_in",
    "full_masks",
    "layer_path",
    "layer_prefix",
    "layerless",
    "present",
]
