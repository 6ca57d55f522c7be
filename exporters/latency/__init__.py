"""Predicted latency: timed blocks, curves, the table that a budget of latency asks."""

from exporters.latency.curve import Curve
from exporters.latency.machine import processor
from exporters.latency.model import latency_model
from exporters.latency.table import LatencyTable

__all__ = ["Curve", "LatencyTable", "latency_model", "processor"]
