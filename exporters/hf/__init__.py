"""The Hugging Face checkpoint: saving, reloading, the modelling file of per-layer widths."""

from exporters.hf.checkpoint import Processor, SavePass, class_of, reload
from exporters.hf.modelling import needs_modelling_file
from exporters.hf.streamed import save_streamed, why_not_streamed

__all__ = [
    "Processor",
    "SavePass",
    "class_of",
    "needs_modelling_file",
    "reload",
    "save_streamed",
    "why_not_streamed",
]
