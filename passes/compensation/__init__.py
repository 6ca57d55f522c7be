"""Re-solving the projections that read removed units, by least squares on calibration activations."""

from passes.compensation.compensate import CompensatePass
from passes.compensation.recompensate import RecompensatePass

__all__ = ["CompensatePass", "RecompensatePass"]
