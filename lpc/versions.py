"""Versions of the packages that a result depends on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from platform import python_version

PACKAGES = (
    "accelerate",
    "lm-eval",
    "lpc",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-genai",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "torch-pruning",
    "transformers",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that had a hand in the result; absent ones are left out."""
    found = {"python": python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
