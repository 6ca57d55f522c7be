"""The names of the criteria; what is behind each is in ``passes.criteria``."""

from __future__ import annotations

from importlib.metadata import entry_points

AUTO = "auto"
"""The name that stands for the criterion that was measured best (docs/quality.md), of those that rank a model."""

ENTRY_POINTS = "lpc.criteria"

BUILT_IN = (
    "loraprune", "loraprune-code", "taylor", "fisher", "mask-fisher", "wanda", "flap", "obs", "magnitude",
    "magnitude-l1", "random",
)  # fmt: skip

_NAMES = list(BUILT_IN)


def criterion_names() -> tuple[str, ...]:
    """All names: lpc's own, those registered at run time, and those of installed packages, which are not imported."""
    return tuple(dict.fromkeys((*_NAMES, *(point.name for point in entry_points(group=ENTRY_POINTS)))))


def criterion_choices() -> tuple[str, ...]:
    """What an option may say: a name, or ``auto``."""
    return (*criterion_names(), AUTO)


def declare_criterion(name: str) -> None:
    """Make a name known that a criterion is registered by."""
    if name not in _NAMES:
        _NAMES.append(name)
