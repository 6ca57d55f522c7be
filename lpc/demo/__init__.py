"""The demo: an embedded model and text, no network."""

from lpc.demo.run import Demo, run

__all__ = ["Demo", "run"]
