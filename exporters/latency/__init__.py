"""Predicted latency: timed blocks, curves, the table that a budget of latency asks."""

from exporters.latency.machine import processor
from exporters.latency.model import latency_model

__all__ = ["latency_model", "processor"]
