"""The source: a model as the user names it, loaded or copied so that the user's own stays as it is."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from peft import PeftModel
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from exporters.hf import Processor, class_of
from lpc.places import locate
from passes.errors import LpcError, ModelError, TokenizerError
from passes.families import family_of
from passes.models import base_model, check_adapter_folder, task_of

IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")

ModelLike: TypeAlias = "PreTrainedModel | PeftModel | str | Path"
"""What the user may hand over as a model: a live one, a local folder, or a name on the Hugging Face hub."""


@dataclass(frozen=True)
class ImageProcessorFile:
    """The description of an image processor, taken along as it stands: reading it needs no imaging library."""

    text: str

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write it into a folder."""
        (Path(save_directory) / IMAGE_PROCESSOR_FILE).write_text(self.text, encoding="utf-8")


@dataclass(frozen=True)
class Source:
    """A working copy of the user's model, its tokenizer or image processor, and its name or absolute path."""

    model: PreTrainedModel | PeftModel
    processor: Processor | None
    name: str

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, if that is what the model has."""
        return self.processor if isinstance(self.processor, PreTrainedTokenizerBase) else None


def load_source(model: ModelLike, processor: Processor | None = None, *, trust_remote_code: bool = False) -> Source:
    """Load a folder or hub model of any task, or copy a live one.

    ``processor`` is a tokenizer or an image processor; by default the one that comes with the model. A folder that
    holds an adapter is loaded with the base model that its configuration names. Raises MissingFileError, ModelError,
    UnsupportedModelError or TokenizerError (a tokenizer that is there but broken).
    """
    if isinstance(model, PreTrainedModel | PeftModel):
        base = base_model(model)
        _check_supported(base)
        name = str(base.config.name_or_path or type(base).__name__)
        found = processor or (find_processor(Path(name)) if Path(name).is_dir() else None)
        return Source(copy.deepcopy(model).eval(), found, _absolute(name))
    name = str(model)
    folder = locate(name)
    if folder is not None and (folder / "adapter_config.json").is_file():
        return _load_adapted(folder, processor, trust_remote_code)
    loaded = _load_model(name, folder, trust_remote_code)
    found = processor or (find_processor(folder) if folder else _hub_processor(name, trust_remote_code))
    return Source(loaded, found, _absolute(name))


def load(model: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a model for use, among them the compact ones that no stock class holds: their own file is not run.

    Raises what ``load_source`` raises.
    """
    return base_model(load_source(model, trust_remote_code=trust_remote_code).model)


def load_config(model: str | Path) -> PreTrainedConfig:
    """The configuration of a folder (which may hold nothing else) or hub model. Raises MissingFileError, ModelError."""
    folder = locate(str(model))
    try:
        return AutoConfig.from_pretrained(str(folder or model), local_files_only=folder is not None)
    except LpcError:
        raise
    except Exception as error:
        raise _unreadable(str(model), "config.json", error) from error


def find_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder, or None if there are no tokenizer files. Raises TokenizerError if they are broken."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise TokenizerError(f"the tokenizer in {folder} cannot be loaded: {reason(error)}") from error


def find_processor(folder: Path) -> Processor | None:
    """The tokenizer in a folder, or else the image processor, or None. Raises TokenizerError for a broken tokenizer."""
    return find_tokenizer(folder) or _image_processor(folder / IMAGE_PROCESSOR_FILE)


def _image_processor(path: Path) -> ImageProcessorFile | None:
    return ImageProcessorFile(path.read_text(encoding="utf-8")) if path.is_file() else None


def _hub_processor(name: str, trust_remote_code: bool) -> Processor:
    try:
        file = cached_file(name, IMAGE_PROCESSOR_FILE, _raise_exceptions_for_missing_entries=False)
        found: Processor | None = _image_processor(Path(file)) if file else None
        return found or AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise TokenizerError(f"the tokenizer of {name} cannot be loaded: {reason(error)}") from error


def _load_model(name: str, folder: Path | None, trust_remote_code: bool) -> PreTrainedModel:
    config = load_config(name)
    family_of(config)
    kind = class_of(str(folder or name), config, trust_remote_code=trust_remote_code)
    try:
        model: PreTrainedModel = kind.from_pretrained(
            str(folder or name), local_files_only=folder is not None, use_safetensors=True
        )
    except Exception as error:
        raise _unreadable(name, "weights", error) from error
    _check_supported(model)
    return model.eval()


def _load_adapted(folder: Path, processor: Processor | None, trust_remote_code: bool) -> Source:
    check_adapter_folder(folder)
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{folder}/adapter_config.json does not name its base model; load the PeftModel yourself")
    source = load_source(base, processor, trust_remote_code=trust_remote_code)
    return Source(load_adapter(source.model, folder), source.processor or find_processor(folder), source.name)


def load_adapter(model: PreTrainedModel | PeftModel, folder: str | Path) -> PeftModel:
    """The model wearing the adapter of a folder in peft's format, trainable. Raises MissingFileError, ModelError."""
    path = check_adapter_folder(folder)
    try:
        return PeftModel.from_pretrained(base_model(model), str(path), is_trainable=True, use_safetensors=True).eval()
    except Exception as error:
        raise ModelError(f"the adapter in {path} does not fit the model: {reason(error)}") from error


def _check_supported(model: PreTrainedModel) -> None:
    family_of(model.config)
    task_of(model)


def _unreadable(name: str, what: str, error: Exception) -> ModelError:
    hub = "" if Path(name).is_dir() else " (there is no such folder, so it was taken for a hub name)"
    return ModelError(f"the {what} of {name}{hub} cannot be loaded: {reason(error)}")


def reason(error: Exception) -> str:
    """What an error of another library says, on one line: the first that is whole, with those before it."""
    if isinstance(error, KeyError):
        return f"{error} is not known"
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = ""
    for line in lines:
        text = f"{text} {line}".strip()
        if not line.endswith(":"):
            break
    return text[:500] or type(error).__name__


def _absolute(name: str) -> str:
    return str(Path(name).absolute()) if Path(name).is_dir() else name
