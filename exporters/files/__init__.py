"""An output folder: whole or not at all, held by one writer at a time, checked before any work."""

from exporters.files.folder import (
    FILES,
    UPDATE,
    claimed,
    linked,
    sha256,
    staged_folder,
    updating,
    write_text,
    write_texts,
)
from exporters.files.names import DECODER_FILE, ENCODER_FILE, MODEL_FILE, PACKAGE
from exporters.files.place import Owned, run_folder

__all__ = [
    "DECODER_FILE",
    "ENCODER_FILE",
    "FILES",
    "MODEL_FILE",
    "PACKAGE",
    "UPDATE",
    "Owned",
    "claimed",
    "linked",
    "run_folder",
    "sha256",
    "staged_folder",
    "updating",
    "write_text",
    "write_texts",
]
