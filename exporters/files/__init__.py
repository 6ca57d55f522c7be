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
from exporters.files.hashes import check_files, check_seal, hashes, sealed
from exporters.files.names import (
    COMPANIONS,
    DECODER_FILE,
    ENCODER_FILE,
    GRAPHS,
    MODEL_FILE,
    PACKAGE,
    PRECISION_ENTRY,
    PROVENANCE,
)
from exporters.files.place import Owned, run_folder

__all__ = [
    "COMPANIONS",
    "DECODER_FILE",
    "ENCODER_FILE",
    "FILES",
    "GRAPHS",
    "MODEL_FILE",
    "PACKAGE",
    "PRECISION_ENTRY",
    "PROVENANCE",
    "UPDATE",
    "Owned",
    "check_files",
    "check_seal",
    "claimed",
    "hashes",
    "linked",
    "locked",
    "put_in_place",
    "run_folder",
    "sealed",
    "sha256",
    "staged_folder",
    "updating",
    "write_text",
    "write_texts",
]
