"""Where a result runs: one file a runtime, each verdict with its reason."""

from exporters.runtimes.compatibility import compatibility
from exporters.runtimes.verdict import Verdict

__all__ = ["Verdict", "compatibility"]
