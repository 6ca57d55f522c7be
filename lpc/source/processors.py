"""Processors: the tokenizer or image processor that belongs to a model, found beside it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from exporters.hf import Processor
from passes.errors import TokenizerError
from passes.models import quiet, reason, vendor
from passes.places import Place
from passes.stored import check_fetched

logger = logging.getLogger(__name__)

IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class ImageProcessorFile:
    """The description of an image processor, taken along as it stands: reading it needs no imaging library."""

    text: str

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write it into a folder."""
        (Path(save_directory) / IMAGE_PROCESSOR_FILE).write_text(self.text, encoding="utf-8")


def find_tokenizer(
    folder: Path, *, gguf: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder, or None if there are no tokenizer files. Raises TokenizerError if they are broken."""
    if gguf is None and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    try:
        with quiet():
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code, **options
            )
    except Exception as error:
        where = folder / gguf if gguf else folder
        why = f"{reason(error)}"
        if "trust_remote_code" in str(error):
            why = "it brings code of its own, which is not run: say trust_remote_code=True (--trust-remote-code)"
        files = [name for name in TOKENIZER_FILES if gguf is None and (folder / name).is_file()]
        for name in files:
            check_fetched(folder / name)
        anew = f": write {', '.join(files)} anew" if files else ""
        raise TokenizerError(f"the tokenizer in {where} cannot be loaded: {why}{anew}") from error
    check_processor(found)
    return found


def find_processor(folder: Path, *, trust_remote_code: bool = False) -> Processor | None:
    """The tokenizer in a folder, or else the image processor, or None. Raises TokenizerError for a broken tokenizer."""
    return find_tokenizer(folder, trust_remote_code=trust_remote_code) or _image_processor(
        folder / IMAGE_PROCESSOR_FILE
    )


def check_processor(processor: object) -> None:
    """Raise TokenizerError for what cannot be saved with a model, such as a tokenizer's name, and for one that has an
    entry of another kind than its readers expect.
    """
    saves = callable(getattr(processor, "save_pretrained", None)) and not isinstance(processor, type)
    if processor is not None and not saves:
        raise TokenizerError(
            f"the tokenizer is {processor!r:.80}, not a tokenizer: hand over AutoTokenizer.from_pretrained(...), or "
            "leave it out and the one beside the model is taken"
        )
    for name, kinds, must in (
        ("chat_template", str | dict | None, "text"),
        ("model_max_length", int | float, "number"),
    ):
        value = getattr(processor, name, None)
        if isinstance(processor, PreTrainedTokenizerBase) and not isinstance(value, kinds):
            raise TokenizerError(
                f"the tokenizer's {name} is {value!r:.60}, and must be a {must}: correct tokenizer_config.json"
            )


def _image_processor(path: Path) -> ImageProcessorFile | None:
    return ImageProcessorFile(path.read_text(encoding="utf-8")) if path.is_file() else None


def processor_of(place: Place, trust_remote_code: bool) -> Processor | None:
    """What lies beside a model, wherever that is; None where there is nothing. Raises TokenizerError."""
    if place.folder is None:
        return _hub_processor(place.name, trust_remote_code)
    if place.gguf is None:
        return find_processor(place.folder, trust_remote_code=trust_remote_code)
    beside = find_tokenizer(place.folder, trust_remote_code=trust_remote_code)
    try:
        return beside or find_tokenizer(place.folder, gguf=place.gguf)
    except TokenizerError as error:
        logger.warning("%s; token ids can be given without one", error)
        return None


def _hub_processor(name: str, trust_remote_code: bool) -> Processor:
    try:
        file = vendor.cached_or_none(name, IMAGE_PROCESSOR_FILE)
        found: Processor | None = _image_processor(Path(file)) if file else None
        return found or AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise TokenizerError(f"the tokenizer of {name} cannot be loaded: {reason(error)}") from error
