"""The way out: HF checkpoint, ONNX graph, GenAI package. Imports ``passes``, never ``lpc``."""
