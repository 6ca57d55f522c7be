"""An output folder: whole or not at all, held by one writer at a time, checked before any work."""

from exporters.files.folder import (
    FILES,
    UPDATE,
    claimed,
    linked,
    locked,
    put_in_place,
    sha256,
    staged_folder,
    updating,
    write_text,
    write_texts,
)
from exporters.files.names import DECODER_FILE, ENCODER_FILE, MODEL_FILE, PACKAGE, PRECISION_ENTRY
from exporters.files.place import Owned, run_folder

__all__ = [
    "DECODER_FILE",
    "ENCODER_FILE",
    "FILES",
    "MODEL_FILE",
    "PACKAGE",
    "PRECISION_ENTRY",
    "UPDATE",
    "Owned",
    "claimed",
    "linked",
    "locked",
    "put_in_place",
    "run_folder",
    "sha256",
    "staged_folder",
    "updating",
    "write_text",
    "write_texts",
]
