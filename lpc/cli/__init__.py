"""The command line: options, tables, progress. Nothing here computes."""

from lpc.cli.app import main

__all__ = ["main"]
