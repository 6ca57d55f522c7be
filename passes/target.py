"""The target: from a ratio of the whole model's parameters to the widths of a uniform layout."""

from __future__ import annotations

from dataclasses import dataclass

from passes.errors import OptionError, UnreachableRatioError
from passes.graph import Kind, PruningGraph

WIDE = 1024
"""MLPs at least this wide are rounded to ``COARSE`` channels, narrower ones to ``FINE``."""
COARSE = 64
FINE = 8


@dataclass(frozen=True)
class UniformWidths:
    """The same widths in every layer: KV groups and MLP channels."""

    groups: int
    channels: int


def default_multiple(graph: PruningGraph) -> int:
    """What MLP widths are rounded to unless the user says otherwise: 64 from 1024 channels up, else 8."""
    return COARSE if graph.size(Kind.MLP_CHANNELS) >= WIDE else FINE


def reachable_channels(graph: PruningGraph, multiple: int) -> list[int]:
    """MLP widths a result may have, ascending: the multiples, and the dense width itself."""
    size = graph.size(Kind.MLP_CHANNELS)
    return sorted({*range(multiple, size + 1, multiple), size})


def check_ratio(ratio: float) -> None:
    """Raise OptionError unless 0 < ratio < 1."""
    if not 0 < ratio < 1:
        raise OptionError(f"ratio must lie strictly between 0 and 1, got {ratio}: 0.3 removes 30 % of the parameters")


def uniform_widths(graph: PruningGraph, ratio: float, multiple: int | None = None) -> UniformWidths:
    """The widths that remove ``ratio`` of the whole model's parameters.

    1. The heads give the share of their parameters that all prunable parameters together must give, as nearly as
       whole KV groups (that a stock class loads) allow; on a tie the smaller model.
    2. The channels make up the rest: the widest reachable MLP with which the model has at most
       (1 − ratio) × dense parameters. If none is narrow enough, the next nearest group count is tried.

    Raises UnreachableRatioError, stating the largest reachable ratio, when even the smallest model is too large.
    """
    check_ratio(ratio)
    multiple = multiple or default_multiple(graph)
    dense = graph.parameters()
    # Without rounding, the floating-point error of 1 - ratio can exclude a size that meets the ratio exactly.
    target = round((1 - ratio) * dense, 3)
    share = (dense - target) / sum(graph.unit_parameters(d) * d.size for d in graph.dimensions)
    wanted = (1 - share) * graph.size(Kind.KV_GROUPS)
    channels = reachable_channels(graph, multiple)
    for groups in sorted(graph.group_counts, key=lambda count: (abs(count - wanted), count)):
        fitting = [width for width in channels if graph.parameters(graph.uniform(groups, width)) <= target]
        if fitting:
            return UniformWidths(groups, fitting[-1])
    smallest = graph.parameters(graph.uniform(graph.group_counts[0], channels[0]))
    raise UnreachableRatioError(
        f"ratio {ratio} is out of reach: with {graph.group_counts[0]} KV group and {channels[0]} MLP channels a layer "
        f"{smallest:,} of {dense:,} parameters remain, mostly embeddings. "
        f"The largest reachable ratio is {floor_ratio(1 - smallest / dense):.4f}"
    )


def floor_ratio(ratio: float) -> float:
    """The ratio rounded down to 4 digits, so that asking for it succeeds."""
    return int(ratio * 1e4) / 1e4


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the user asked for: the share of the whole model's parameters that goes, and the MLP rounding.

    ``multiple``: MLP widths are multiples of it (default: 64 from 1024 channels up, else 8).
    """

    ratio: float
    multiple: int | None = None

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if self.multiple is not None and self.multiple < 1:
            raise OptionError(f"multiple must be at least 1, got {self.multiple}")

    def widths(self, graph: PruningGraph) -> UniformWidths:
        """The widths that meet the target. Raises UnreachableRatioError."""
        return uniform_widths(graph, self.ratio, self.multiple)
