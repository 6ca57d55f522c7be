"""Re-solving the projections that read removed units, by least squares on calibration activations."""

from passes.compensation.compensate import CompensateOptions, CompensatePass
from passes.compensation.recompensate import RecompensatePass

__all__ = ["CompensateOptions", "CompensatePass", "RecompensatePass"]
