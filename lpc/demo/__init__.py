"""The demo: an embedded model and text, no network."""

from lpc.demo.run import Demo, run, write_files

__all__ = ["Demo", "run", "write_files"]
