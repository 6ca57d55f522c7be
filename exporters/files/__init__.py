"""An output folder: whole or not at all, held by one writer at a time, checked before any work."""

from exporters.files.folder import UPDATE, claimed, sha256, staged_folder, updating, write_text, write_texts
from exporters.files.names import DECODER_FILE, ENCODER_FILE, MODEL_FILE, PACKAGE
from exporters.files.place import Owned

__all__ = [
    "DECODER_FILE",
    "ENCODER_FILE",
    "MODEL_FILE",
    "PACKAGE",
    "UPDATE",
    "Owned",
    "claimed",
    "sha256",
    "staged_folder",
    "updating",
    "write_text",
    "write_texts",
]
