"""What a user hands over as a model: folders, hub names, adapters, live models, with their tokenizers."""

from lpc.source.adapters import check_not_blank, load_adapter
from lpc.source.placing import cast_to
from lpc.source.processors import find_tokenizer
from lpc.source.sentences import read_pooling
from lpc.source.source import ModelLike, Source, find_unloaded, load, load_config, load_source

__all__ = [
    "ModelLike",
    "Source",
    "cast_to",
    "check_not_blank",
    "find_tokenizer",
    "find_unloaded",
    "load",
    "load_adapter",
    "load_config",
    "load_source",
    "read_pooling",
]
