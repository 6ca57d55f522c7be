"""From data to a plan: scoring on calibration data, deciding, replaying."""

from passes.decide.balance import ROWS, WAYS, BalanceTried
from passes.decide.decide import DecidePass
from passes.decide.replay import ReplayPass
from passes.decide.score import ScorePass, ScoreReport

__all__ = ["ROWS", "WAYS", "BalanceTried", "DecidePass", "ReplayPass", "ScorePass", "ScoreReport"]
