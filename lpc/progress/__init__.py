"""How far a run is: stage by stage, with the time that has gone and the time that is left of the whole."""

from lpc.progress.journey import Journey, Leg, Standing, clocked, expect, numbered, tell_share
from lpc.progress.lines import Lines, logged, share_told

__all__ = [
    "Journey",
    "Leg",
    "Lines",
    "Standing",
    "clocked",
    "expect",
    "logged",
    "numbered",
    "share_told",
    "tell_share",
]
