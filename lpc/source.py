"""The source: a model as the user names it, loaded or copied so that the user's own stays as it is."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from peft import PeftModel
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from passes.adapter import check_adapter_folder
from passes.attention import family_of
from passes.errors import LpcError, MissingFileError, ModelError, TokenizerError, UnsupportedModelError
from passes.models import base_model

HUB_NAME = re.compile(r"(\w[\w.-]*)/[\w.-]+")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")

ModelLike: TypeAlias = "PreTrainedModel | PeftModel | str | Path"
"""What the user may hand over as a model: a live one, a local folder, or a name on the Hugging Face hub."""


@dataclass(frozen=True)
class Source:
    """A working copy of the user's model, its tokenizer if there is one, and its name or absolute path."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str


def load_source(
    model: ModelLike, tokenizer: PreTrainedTokenizerBase | None = None, *, trust_remote_code: bool = False
) -> Source:
    """Load a folder or hub model, or copy a live one.

    A folder that holds an adapter is loaded with the base model that its configuration names. Raises MissingFileError,
    ModelError, UnsupportedModelError or TokenizerError (a tokenizer that is there but broken).
    """
    if isinstance(model, PreTrainedModel | PeftModel):
        base = base_model(model)
        _check_causal(base)
        name = str(base.config.name_or_path or type(base).__name__)
        found = tokenizer or (find_tokenizer(Path(name)) if Path(name).is_dir() else None)
        return Source(copy.deepcopy(model).eval(), found, _absolute(name))
    name = str(model)
    folder = locate(name)
    if folder is not None and (folder / "adapter_config.json").is_file():
        return _load_adapted(folder, tokenizer, trust_remote_code)
    loaded = _load_model(name, folder, trust_remote_code)
    found = tokenizer or (find_tokenizer(folder) if folder else _hub_tokenizer(name, trust_remote_code))
    return Source(loaded, found, _absolute(name))


def load_config(model: str | Path) -> PreTrainedConfig:
    """The configuration of a folder (which may hold nothing else) or hub model. Raises MissingFileError, ModelError."""
    folder = locate(str(model))
    try:
        return AutoConfig.from_pretrained(str(folder or model), local_files_only=folder is not None)
    except LpcError:
        raise
    except Exception as error:
        raise _unreadable(str(model), "config.json", error) from error


def locate(name: str) -> Path | None:
    """The local folder of that name, or None for what can only be a hub name, ``owner/name``. Raises MissingFileError.

    What looks like a path (its first part is a folder here) is never looked up on the hub.
    """
    path = Path(name)
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise MissingFileError(f"there is no config.json in {path}; name a folder that save_pretrained wrote")
        return path
    if path.exists():
        raise ModelError(f"{path} is a file; name the folder that holds the model")
    hub_name = HUB_NAME.fullmatch(name)
    if hub_name is None or Path(hub_name[1]).is_dir():
        raise MissingFileError(f"there is no model folder {name} (a model on the hub is named owner/name)")
    return None


def find_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder, or None if there are no tokenizer files. Raises TokenizerError if they are broken."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise TokenizerError(f"the tokenizer in {folder} cannot be loaded: {_first_line(error)}") from error


def _hub_tokenizer(name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise TokenizerError(f"the tokenizer of {name} cannot be loaded: {_first_line(error)}") from error


def _load_model(name: str, folder: Path | None, trust_remote_code: bool) -> PreTrainedModel:
    family_of(load_config(name))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder or name),
            local_files_only=folder is not None,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except Exception as error:
        raise _unreadable(name, "weights", error) from error
    _check_causal(model)
    return model.eval()


def _load_adapted(folder: Path, tokenizer: PreTrainedTokenizerBase | None, trust_remote_code: bool) -> Source:
    check_adapter_folder(folder)
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{folder}/adapter_config.json does not name its base model; load the PeftModel yourself")
    source = load_source(base, tokenizer, trust_remote_code=trust_remote_code)
    return Source(load_adapter(source.model, folder), source.tokenizer or find_tokenizer(folder), source.name)


def load_adapter(model: PreTrainedModel | PeftModel, folder: str | Path) -> PeftModel:
    """The model wearing the adapter of a folder in peft's format, trainable. Raises MissingFileError, ModelError."""
    path = check_adapter_folder(folder)
    try:
        return PeftModel.from_pretrained(base_model(model), str(path), is_trainable=True, use_safetensors=True).eval()
    except Exception as error:
        raise ModelError(f"the adapter in {path} does not fit the model: {_first_line(error)}") from error


def _check_causal(model: PreTrainedModel) -> None:
    family_of(model.config)
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(model.config)]
    if type(model) is not stock:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not supported; "
            f"lpc prunes causal language models of the stock class {stock.__name__}"
        )


def _unreadable(name: str, what: str, error: Exception) -> ModelError:
    hub = "" if Path(name).is_dir() else " (there is no such folder, so it was taken for a hub name)"
    return ModelError(f"the {what} of {name}{hub} cannot be loaded: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _absolute(name: str) -> str:
    return str(Path(name).absolute()) if Path(name).is_dir() else name
