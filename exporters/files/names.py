"""The names of an ONNX package's files."""

from __future__ import annotations

import json
from pathlib import Path

from exporters.files.place import Owned

MODEL_FILE, ENCODER_FILE, DECODER_FILE = "model.onnx", "encoder_model.onnx", "decoder_model.onnx"
PRECISION_ENTRY = "onnx_precision"
"""The entry of ``config.json`` that names a package's precision."""

GRAPHS = (MODEL_FILE, ENCODER_FILE, DECODER_FILE)
PROVENANCE = "provenance.json"
"""Who made a package, of what, and the hashes of its files."""

COMPANIONS = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
        "genai_config.json",
        "generation_config.json",
        "merges.txt",
        "preprocessor_config.json",
        "processor_config.json",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
"""What the graphs' users read besides: configuration, tokenizer, image processor."""


def _is_package(folder: Path) -> bool:
    """Whether a folder holds graphs and no checkpoint, whose configuration would be the checkpoint's."""
    return any((folder / graph).is_file() for graph in GRAPHS) and not any(folder.glob("model*.safetensors"))


def _is_precision(entry: Path) -> bool:
    """Whether an entry is the package of one precision among several, which its configuration says."""
    try:
        said = json.loads((entry / "config.json").read_text(encoding="utf-8")).get(PRECISION_ENTRY)
    except (OSError, ValueError, AttributeError):
        return False
    return said == entry.name and _is_package(entry)


PACKAGE = Owned(
    names=COMPANIONS | {PROVENANCE} | {name for graph in GRAPHS for name in (graph, f"{graph}.data")},
    is_made=_is_package,
    is_member=_is_precision,
)
"""What an export owns in its output folder."""

TRITON_CONFIG, TRITON_VERSION = "config.pbtxt", "1"
REPOSITORY = Owned(
    names=frozenset(),
    is_made=lambda folder: any(folder.glob(f"*/{TRITON_CONFIG}")),
    is_member=lambda entry: (entry / TRITON_CONFIG).is_file() and _is_package(entry / TRITON_VERSION),
)
"""What an export owns in a Triton model repository: models that are packages, and none of the user's others."""
