"""The names of an ONNX package's files."""

from __future__ import annotations

from pathlib import Path

from exporters.files.place import Owned

MODEL_FILE, ENCODER_FILE, DECODER_FILE = "model.onnx", "encoder_model.onnx", "decoder_model.onnx"
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


PACKAGE = Owned(
    names=COMPANIONS | {PROVENANCE} | {name for graph in GRAPHS for name in (graph, f"{graph}.data")},
    is_made=_is_package,
)
"""What an export owns in its output folder."""
