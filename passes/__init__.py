"""The compiler: IR, pass infrastructure, one file a pass. Imports neither ``exporters`` nor ``lpc``."""
