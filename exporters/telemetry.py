"""onnxruntime's telemetry, off: it looks up its collector on the network and writes a device id to disk."""

from __future__ import annotations

import os
import sys

VARIABLE = "ORT_DISABLE_TELEMETRY"
"""onnxruntime reads it when it is first imported; GenAI starts through it as well."""


def switch_off() -> None:
    """Keep onnxruntime from reporting, in this process and those that it starts. What the user set wins."""
    os.environ.setdefault(VARIABLE, "1")
    loaded = sys.modules.get("onnxruntime")
    if loaded is not None and os.environ[VARIABLE] == "1":
        loaded.disable_telemetry_events()
