"""Where onnxruntime computes: its execution providers, by the short names that users type."""

from __future__ import annotations

import onnxruntime

from passes.errors import OptionError

SUFFIX = "ExecutionProvider"
REMOTE = "AzureExecutionProvider"
"""Is in every build, and computes nothing here: it calls a service."""
MEMORY = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
"""Providers with memory of their own: what is timed lies there, so that no copy is."""


def providers() -> dict[str, str]:
    """What the onnxruntime here has: ``cpu``, ``cuda``, ``openvino``, ..., and its own names of them."""
    present = (each for each in onnxruntime.get_available_providers() if each != REMOTE)
    return {each.removesuffix(SUFFIX).lower(): each for each in present}


def provider_named(name: str) -> str:
    """onnxruntime's name of a provider, by its short name or its own. Raises OptionError where it is not installed."""
    present, short = providers(), name.removesuffix(SUFFIX).lower()
    if short not in present:
        raise OptionError(
            f"onnxruntime has no provider {name!r} here: choose one of {', '.join(sorted(present))}, or install "
            "the build that has it, such as onnxruntime-gpu or onnxruntime-openvino"
        )
    return present[short]
