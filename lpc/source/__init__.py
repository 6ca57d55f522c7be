"""What a user hands over as a model: folders, hub names, adapters, live models, with their tokenizers."""

from lpc.source.adapters import check_not_blank, load_adapter
from lpc.source.source import ModelLike, Source, find_tokenizer, load, load_config, load_source

__all__ = [
    "ModelLike",
    "Source",
    "check_not_blank",
    "find_tokenizer",
    "load",
    "load_adapter",
    "load_config",
    "load_source",
]
