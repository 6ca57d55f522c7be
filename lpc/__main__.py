"""``python -m lpc``."""

from lpc.cli import main

main()
