"""Sweeps: the cells of a grid run one by one, in parallel or on a cluster, and told in one report."""

from lpc.sweeping.cell import run_cell
from lpc.sweeping.folder import Outcome, State, SweepFolder
from lpc.sweeping.report import SweepReport
from lpc.sweeping.run import begun, sweep
from lpc.sweeping.slurm import slurm_script

__all__ = [
    "Outcome",
    "State",
    "SweepFolder",
    "SweepReport",
    "begun",
    "run_cell",
    "slurm_script",
    "sweep",
]
