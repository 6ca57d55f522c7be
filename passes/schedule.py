"""The schedule: when units go, and how many are gone at each event."""

from __future__ import annotations

from dataclasses import dataclass

from passes.errors import OptionError
from passes.graph import Kind, PruningGraph
from passes.target import UniformWidths


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A cubic curve of *cost* from 0 to the target (Zhu & Gupta, arXiv 1710.01878, eq. 1), in fractions of all steps.

    ``warmup``: before it nothing is masked. ``cooldown``: the last part, in which the final masks stay as they are and
    the adapters heal. ``every``: steps between two events. With ``warmup + cooldown`` = 1 all goes in one event.
    """

    warmup: float = 0.05
    cooldown: float = 0.65
    every: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.warmup < 1 and 0 <= self.cooldown < 1 and self.warmup + self.cooldown <= 1):
            raise OptionError(
                f"warmup {self.warmup} and cooldown {self.cooldown} must be fractions that add up to at most 1"
            )
        if self.every < 1:
            raise OptionError(f"events must be at least one step apart, got every={self.every}")

    def events(self, steps: int) -> list[tuple[int, float]]:
        """(step, share of the target removed from that step on), ascending; the last share is exactly 1.

        Steps count finished optimizer steps, 1 to ``steps``.
        """
        first = max(1, round(self.warmup * steps))
        last = max(first, round((1 - self.cooldown) * steps))
        times = [*range(first, last, self.every), last]
        span = max(1, last - first + self.every)
        shares = [1 - (1 - (time - first + self.every) / span) ** 3 for time in times]
        return list(zip(times, [*shares[:-1], 1.0], strict=True))


def ramp(graph: PruningGraph, target: UniformWidths, shares: list[float]) -> list[UniformWidths]:
    """Widths a layer at each share of the target's cost.

    The curve is one of cost: KV groups, the coarse units, go at the point of the curve nearest to their own share
    (a tie goes early), and the channels make up the difference. Nothing comes back on the way, and the last widths are
    the target's.
    """
    dense = UniformWidths(graph.size(Kind.KV_GROUPS), graph.size(Kind.MLP_CHANNELS))
    group_cost, channel_cost = (
        sum(graph.unit_parameters(d) for d in graph.of_kind(kind)) for kind in (Kind.KV_GROUPS, Kind.MLP_CHANNELS)
    )
    groups_to_go, channels_to_go = dense.groups - target.groups, dense.channels - target.channels
    total = groups_to_go * group_cost + channels_to_go * channel_cost
    widths, channels_gone = [], 0
    for share in shares:
        groups_gone = min(groups_to_go, int(share * groups_to_go + 0.5))
        rest = round((share * total - groups_gone * group_cost) / channel_cost)
        channels_gone = max(channels_gone, min(channels_to_go, rest))
        widths.append(UniformWidths(dense.groups - groups_gone, dense.channels - channels_gone))
    return [*widths[:-1], target]
