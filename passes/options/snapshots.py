"""At which ratios a run is to leave a model."""

from __future__ import annotations

from dataclasses import dataclass

from passes.errors import OptionError
from passes.options.check import check
from passes.options.option import Group, option


def read_ratios(text: str) -> tuple[float, ...]:
    """Ratios from a text such as ``0.1,0.3,0.5``. Raises OptionError."""
    try:
        return tuple(float(ratio) for ratio in text.split(","))
    except ValueError:
        raise OptionError(f"snapshots {text!r}: write ratios separated by commas, such as 0.1,0.3,0.5") from None


@dataclass(frozen=True, kw_only=True)
class SnapshotOptions:
    """At which ratios of the parameters a run is to leave a model, ascending; the last one is the run's own target."""

    ratios: tuple[float, ...] = option(
        noun="snapshot ratios",
        above=0,
        below=1,
        help="Ascending ratios: leave a model at each, OUT/0.1 and so on, and one curve.",
        group=Group.REMOVE,
        flag="--snapshots",
        metavar="R,R,...",
        words=str,
        read=read_ratios,
    )
    cooldown: int | None = option(
        None,
        noun="snapshot steps",
        least=1,
        help="Steps to recover at each of the snapshots, its masks being fixed; by default the cool-down of the "
        "schedule, divided among them.",
        group=Group.REMOVE,
        flag="--snapshot-steps",
    )

    def __post_init__(self) -> None:
        check(self)
        told = ", ".join(map(str, self.ratios))
        if not self.ratios:
            raise OptionError("snapshots need at least one ratio, such as 0.1,0.3,0.5")
        if len(set(self.ratios)) < len(self.ratios):
            raise OptionError(f"each snapshot ratio can be asked for once only, got {told}")
        if list(self.ratios) != sorted(self.ratios):
            raise OptionError(f"snapshot ratios must ascend, as the run removes more and more; got {told}")
