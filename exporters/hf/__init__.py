"""The Hugging Face checkpoint: saving, reloading, the modelling file of per-layer widths."""

from exporters.hf.checkpoint import Processor, SavePass, class_of, reload
from exporters.hf.modelling import needs_modelling_file

__all__ = ["Processor", "SavePass", "class_of", "needs_modelling_file", "reload"]
