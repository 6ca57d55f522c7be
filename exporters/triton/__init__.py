"""A Triton model repository: the ONNX package in the folders that Triton reads, each model's configuration."""

from exporters.triton.export_pass import TritonPass
from exporters.triton.repository import check_servable, export_repository

__all__ = ["TritonPass", "check_servable", "export_repository"]
