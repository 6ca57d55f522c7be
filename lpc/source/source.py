"""The source: a model as the user names it, loaded or copied so that the user's own stays as it is."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from exporters.hf import Processor, class_of
from lpc.source.adapters import brings_embeddings, load_adapter, named_base, plain_or_lora
from lpc.source.handed import check_as_built, check_handed, without_hooks
from lpc.source.placing import as_loaded, placed
from lpc.source.processors import check_processor, find_processor, processor_of
from lpc.source.sentences import as_embedding, headless_name, read_pooling, sentence_folder
from passes.discovery import describe
from passes.errors import LpcError, ModelError, OptionError, UnsupportedModelError
from passes.families import check_dense, family_of
from passes.models import (
    CONFIG_FILE,
    Unloaded,
    base_model,
    check_adapter_folder,
    check_loss,
    check_padding,
    dense_weights,
    has_own_sizes,
    keep_own_head,
    load_model,
    packing_of,
    quiet,
    reason,
    task_of,
    unloaded,
    unreadable,
    vendor,
)
from passes.pipeline import RunContext, device_named, dtype_named
from passes.places import Place, find_place, is_there
from passes.stored import check_declared, read_config, read_json

logger = logging.getLogger(__name__)

CHAT_TEMPLATE_FILE = "chat_template.jinja"

ModelLike: TypeAlias = "PreTrainedModel | PeftModel | str | Path"
"""What the user may hand over as a model: a live one, a local folder or GGUF file, or a name on the hub."""


@dataclass(frozen=True)
class Source:
    """A working copy of the user's model, its tokenizer or image processor, and its name or absolute path.

    ``notes`` say what was done to it before anything else, for the report.
    """

    model: PreTrainedModel | PeftModel
    processor: Processor | None
    name: str
    notes: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, if that is what the model has."""
        return self.processor if isinstance(self.processor, PreTrainedTokenizerBase) else None


def load_source(
    model: ModelLike,
    processor: Processor | None = None,
    *,
    trust_remote_code: bool = False,
    run: RunContext | None = None,
    load_in: str | None = None,
) -> Source:
    """Load a folder, a GGUF file or a hub model of any task, or copy a live one.

    ``processor`` is a tokenizer or an image processor; by default the one that comes with the model. A folder that
    holds an adapter is loaded with the base model that its configuration names; an adapter that is more than plain LoRA
    is merged. With a ``run`` the model lies on its device and has its dtype, else it is as it was stored, on the CPU,
    or where the live one is. With ``load_in``, ``8bit`` or ``4bit``, its linear layers are packed by bitsandbytes.

    Raises MissingFileError, ModelError, UnsupportedModelError, TokenizerError (a tokenizer that is there but broken),
    or OptionError where ``load_in`` cannot be.
    """
    check_handed(model)
    check_processor(processor)
    packing = LoadIn(load_in, run or RunContext()) if load_in else None
    source = _load(model, processor, trust_remote_code, packing)
    source = replace(source, notes=(*source.notes, *_discovered(base_model(source.model))))
    _check_saved(base_model(source.model).config, source.name)
    vendor.keep_layout(source.model)
    return source if run is None else replace(source, model=placed(source.model, run))


@dataclass(frozen=True)
class LoadIn:
    """How a model's weights are to be packed: in how many bits, and on the device and with the dtype of which run."""

    load_in: str
    run: RunContext

    def arguments(self, config: PreTrainedConfig) -> Mapping[str, Any]:
        """Those of ``from_pretrained``."""
        dtype = dtype_named(self.run.dtype) or config.dtype or torch.float32
        return {**packing_of(self.load_in, dtype, device_named(self.run.device)), "dtype": dtype}


def _load(model: ModelLike, processor: Processor | None, trust_remote_code: bool, packing: LoadIn | None) -> Source:
    if isinstance(model, PreTrainedModel | PeftModel):
        if packing is not None:
            raise OptionError("load_in (--load-in) is for a folder or a hub name: load the live model packed yourself")
        return _copied(model, processor)
    place = find_place(str(model))
    adapter = place.folder is not None and (place.folder / CONFIG_FILE).is_file()
    if packing is not None and (place.gguf is not None or adapter):
        raise OptionError("load_in (--load-in) packs a model of safetensors: not a GGUF file, nor an adapter's folder")
    if place.folder is not None and (place.folder / CONFIG_FILE).is_file() and place.gguf is None:
        return _load_adapted(place.folder, processor, trust_remote_code)
    return _load_plain(place, processor, trust_remote_code, packing)


def find_unloaded(model: str | Path, processor: Processor | None = None) -> tuple[Unloaded, Processor | None]:
    """The checkpoint of a folder, none of whose weights are read, and its tokenizer or image processor.

    Raises what ``load_source`` raises, and UnsupportedModelError for what can only be loaded as a whole.
    """
    place = find_place(str(model))
    if place.folder is None or place.gguf is not None or (place.folder / CONFIG_FILE).is_file():
        raise UnsupportedModelError("it is no folder of safetensors")
    config = _config_at(place, trust_remote_code=False)
    kind = class_of(str(place.folder), config)
    check_loss(kind, config.model_type)
    check_padding(config, task_of(kind))
    describe(config, kind)
    found = unloaded(kind, place.folder, config)
    why = found.why_whole()
    if why is not None:
        raise UnsupportedModelError(why)
    _check_supported(found.model)
    return found, processor or processor_of(place, trust_remote_code=False)


def load(model: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a model for use, among them the compact ones that no stock class holds: their own file is not run.

    Raises what ``load_source`` raises.
    """
    return base_model(load_source(model, trust_remote_code=trust_remote_code).model)


def load_config(model: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a folder (which may hold nothing else), GGUF file or hub model.

    No code that comes with it is run unless that is trusted. Raises MissingFileError, ModelError.
    """
    return _config_at(find_place(str(model)), trust_remote_code)


def _config_at(place: Place, trust_remote_code: bool) -> PreTrainedConfig:
    values: dict[str, Any] = {}
    if place.folder is not None and place.gguf is None:
        values = read_config(place.folder)
        check_generation(place.folder / "generation_config.json")
    arguments = place.arguments
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            arguments.pop("pretrained_model_name_or_path"), trust_remote_code=trust_remote_code, **arguments
        )
    except LpcError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{place.name} brings code of its own (auto_map in its config.json), which is not run: say "
                "trust_remote_code=True (--trust-remote-code) if you trust it"
            ) from error
        raise unreadable(place.name, "config.json", error, values) from error
    check_declared(config.to_dict(), place.name)
    headless = None if has_own_sizes(config) else headless_name(place, config)
    if headless is not None:
        config.architectures = [headless]
    return config


def check_generation(path: Path) -> None:
    """Raise ModelError if the file of what ``generate`` does is there and cannot be read, which would leave it out, or
    not be written again.
    """
    if not path.is_file():
        return
    values = read_json(path)
    try:
        with quiet():
            GenerationConfig.from_dict(values).validate(strict=True)
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded: {reason(error)}: correct it, or remove the file") from error


def _check_saved_generation(model: PreTrainedModel) -> None:
    """Raise ModelError if transformers would refuse to write what a live model says of ``generate``."""
    said: GenerationConfig | None = getattr(model, "generation_config", None)
    try:
        if said is not None:
            said.validate(strict=True)
    except ValueError as error:
        raise ModelError(f"model.generation_config cannot be saved: {reason(error)}: correct the entry") from error


def _check_saved(config: PreTrainedConfig, name: str) -> None:
    """Raise ModelError if transformers would refuse to write the configuration, some of which loading settles."""
    try:
        config.validate()
    except Exception as error:
        raise ModelError(
            f"the configuration of {name} cannot be saved again: {reason(error)}: correct the entry"
        ) from error


def _copied(model: PreTrainedModel | PeftModel, processor: Processor | None) -> Source:
    """The source of a live model: a copy, without the hooks that are the user's own."""
    base = base_model(model)
    if not dense_weights(base.config):
        _check_supported(base)
    check_as_built(base)
    _check_saved_generation(base)
    name = str(base.config.name_or_path or type(base).__name__)
    folder = Path(name) if is_there(Path(name), "is_dir") else None
    found = processor or (find_processor(folder) if folder else None)
    try:
        copied = without_hooks(copy.deepcopy(model)).eval()
    except Exception as error:
        raise ModelError(
            f"this live {type(base).__name__} cannot be copied ({reason(error)}): save it and hand over the folder"
        ) from error
    dense_weights(base_model(copied).config, base_model(copied))
    as_loaded(base_model(copied))
    keep_own_head(base_model(copied), name)
    _check_supported(base_model(copied))
    pooled = as_embedding(base_model(copied), folder)
    plain, notes = plain_or_lora(copied)
    return Source(plain, found, _absolute(name), (*pooled, *notes))


def _load_plain(
    place: Place, processor: Processor | None, trust_remote_code: bool, packing: LoadIn | None = None
) -> Source:
    config = _config_at(place, trust_remote_code)
    check_dense(config)
    kind = class_of(str(place.folder or place.name), config, trust_remote_code=trust_remote_code)
    check_loss(kind, config.model_type)
    check_padding(config, task_of(kind))
    describe(config, kind)
    folder = sentence_folder(place)
    read_pooling(folder)  # what it refuses, it refuses before any weights are read
    loaded = load_model(kind, place, config, packing.arguments(config) if packing else None)
    _check_supported(loaded)
    notes = as_embedding(loaded, folder)
    return Source(loaded, processor or processor_of(place, trust_remote_code), _absolute(place.name), notes)


def _load_adapted(folder: Path, processor: Processor | None, trust_remote_code: bool) -> Source:
    check_adapter_folder(folder)
    base = find_place(named_base(folder))
    if base.folder is not None and not base.gguf and not (base.folder / "config.json").is_file():
        raise ModelError(
            f"the base of the adapter in {folder}, {base.name}, is itself an adapter: merge that one first"
        )
    own = processor or find_processor(folder, trust_remote_code=trust_remote_code)
    source = _load_plain(base, own, trust_remote_code)
    if own is None:
        _take_template(folder, source.processor)
    saved = brings_embeddings(folder, base_model(source.model))
    model, notes = plain_or_lora(load_adapter(source.model, folder), embeddings=saved)
    return replace(source, model=model, notes=(*source.notes, *notes))


def _take_template(folder: Path, processor: Processor | None) -> None:
    """The chat template that lies in an adapter's folder wins over that of the base's tokenizer."""
    path = folder / CHAT_TEMPLATE_FILE
    if path.is_file() and isinstance(processor, PreTrainedTokenizerBase):
        processor.chat_template = path.read_text(encoding="utf-8")


def _check_supported(model: PreTrainedModel) -> None:
    check_dense(model.config)
    check_loss(type(model), model.config.model_type)
    check_padding(model.config, task_of(model))
    describe(model.config, type(model))


def _discovered(model: PreTrainedModel) -> tuple[str, ...]:
    """What is to be said of a structure that nobody described."""
    proof = family_of(model.config).proof
    return () if proof is None else (f"the structure of {model.config.model_type} was {proof}",)


def _absolute(name: str) -> str:
    return str(Path(name).absolute()) if is_there(Path(name), "exists") else name
