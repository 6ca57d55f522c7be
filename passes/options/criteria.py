"""The names of the criteria; what is behind each is in ``passes.criteria``."""

from __future__ import annotations

from passes.options.names import Names
from passes.options.option import AUTO

CRITERION_NAMES = Names(
    ("loraprune", "loraprune-code", "taylor", "fisher", "mask-fisher", "wanda", "flap", "reap", "obs",
     "magnitude", "magnitude-l1", "random"),
    "lpc.criteria",
)  # fmt: skip


def criterion_choices() -> tuple[str, ...]:
    """What an option may say: a name, or ``auto``."""
    return (*CRITERION_NAMES.known(), AUTO)
