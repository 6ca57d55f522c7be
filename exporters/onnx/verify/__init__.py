"""Verification of ONNX graphs against torch: probes, parities, one file a kind of graph."""
