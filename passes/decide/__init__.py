"""From data to a plan: scoring on calibration data, deciding, replaying."""

from passes.decide.decide import DecidePass
from passes.decide.replay import ReplayPass
from passes.decide.score import ScorePass

__all__ = ["DecidePass", "ReplayPass", "ScorePass"]
