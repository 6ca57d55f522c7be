"""The way out: HF checkpoint, ONNX graph, GenAI package. Imports ``passes``, never ``lpc``."""

from exporters.telemetry import switch_off

switch_off()
