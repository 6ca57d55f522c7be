"""Save: the compact Hugging Face checkpoint, reloaded and compared bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from exporters.files import FILES, linked
from exporters.hf.modelling import modelling_source, needs_modelling_file
from passes.errors import PostconditionError
from passes.models import (
    Parity,
    base_model,
    bit_difference,
    constant_difference,
    model_class,
    resized,
    respond,
    vendor,
)
from passes.pipeline import Pass, PassRecord, PassResult, Program, RunContext

LOADED = frozenset({"transformers_version", "architectures", "dtype", "_name_or_path"})
"""Entries of a configuration that transformers writes when it saves or loads."""


class Processor(Protocol):
    """What turns raw data into a model's inputs: a tokenizer or an image processor."""

    def save_pretrained(self, save_directory: str | Path) -> Any:
        """Write it into a folder."""


@dataclass(frozen=True)
class SavePass(Pass):
    """Writes config, safetensors weights, generation config and processor, for plain ``from_pretrained``.

    Ensures that a reload, with the stock class or else with the user's own, has the same tensors and computes the same
    outputs, bit for bit.
    """

    folder: Path = field(metadata={"record": False})
    processor: Processor | None = field(default=None, metadata={"record": False})
    name = "save"

    def call(self, program: Program, run: RunContext) -> PassResult:
        """Write the folder."""
        save_checkpoint(base_model(program.model), self.processor, self.folder)
        return PassResult(program, modified=False)

    def keep(self, after: Program, folder: Path) -> bool:
        """The files that were written and verified."""
        linked(self.folder, folder / FILES)
        return True

    def restore(self, before: Program, folder: Path, record: PassRecord) -> Program:
        """The same files again."""
        linked(folder / FILES, self.folder)
        return before

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """Reload and compare: tensors, configuration, and the outputs that are computed with the tensors compared.

        Sums of floats depend on where in memory their terms lie and on who adds them, so both models compute on the
        very same tensors, by the same implementations of attention and experts, which are no part of a checkpoint.
        """
        model = base_model(after.model)
        reloaded = _load(type(model), self.folder) if _is_own(type(model)) else reload(self.folder)
        reloaded = reloaded.to(next(model.parameters()).device)
        entries = (each.config.to_dict() for each in (model, reloaded))
        different = first_different_tensor(model, reloaded) or first_entry(*entries)
        if different is not None:
            raise PostconditionError(f"pass 'save' wrote a checkpoint that is not what was saved: {different}")
        _share_tensors(model, reloaded)
        _compute_alike(model, reloaded)
        response = respond(reloaded, after.probe)
        return (response.compare("save", respond(model, after.probe), tolerance=0.0),)


def save_checkpoint(model: PreTrainedModel, processor: Processor | None, folder: Path, *, weights: bool = True) -> None:
    """Write a model, and its tokenizer or image processor if it has one, in Hugging Face's format; safetensors only.

    Without ``weights`` all but these, of a model that may be on the meta device.
    """
    if needs_modelling_file(model):
        modelling_source(type(model))  # the class itself takes its file along, where there can be one
    model.save_pretrained(folder, state_dict=None if weights else {})
    if processor is not None:
        processor.save_pretrained(folder)


def class_of(name: str, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """The class to load a checkpoint with: transformers' own, or, only where that is trusted, the one that it brings.

    Raises UnsupportedModelError if there is none.
    """
    own = getattr(config, "auto_map", None) or {}
    heads = [value for key, value in own.items() if key.startswith("AutoModelFor")]
    reference = next(iter(heads), own.get("AutoModel"))
    if trust_remote_code and reference is not None:
        return cast("type[PreTrainedModel]", get_class_from_dynamic_module(reference, name))
    return model_class(config)


def reload(folder: Path) -> PreTrainedModel:
    """Load a checkpoint with its stock class: no network, no remote code, safetensors only."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return _load(class_of(str(folder), config), folder)


def _load(kind: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return model.eval()


def _compute_alike(model: PreTrainedModel, other: PreTrainedModel) -> None:
    attention, experts = vendor.attention_of(model.config), vendor.experts_of(model.config)
    if attention is not None and attention != vendor.attention_of(other.config):
        other.set_attn_implementation(attention)
    if experts is not None and experts != vendor.experts_of(other.config):
        other.set_experts_implementation(experts)


def _is_own(kind: type[PreTrainedModel]) -> bool:
    """Whether a class is the user's: neither one of transformers' nor one that lpc resized."""
    return not kind.__module__.startswith(("transformers.", resized.__name__))


def first_different_tensor(model: PreTrainedModel, other: PreTrainedModel) -> str | None:
    """The first parameter or buffer that is not bit-equal in both, and how it differs, in words; or None."""
    for kind, differs in (("parameters", bit_difference), ("buffers", constant_difference)):
        mine, theirs = (dict(getattr(each, f"named_{kind}")()) for each in (model, other))
        odd = sorted(mine.keys() ^ theirs.keys())
        if odd:
            return f"{odd[0]} {'is missing' if odd[0] in mine else 'was not there'}"
        for name, tensor in mine.items():
            difference = differs(theirs[name], tensor)
            if difference is not None:
                return f"{name} {difference}"
    return None


def first_entry(saved: Mapping[str, Any], reloaded: Mapping[str, Any]) -> str | None:
    """The first entry of a configuration that is another one when it is reloaded, in words; or None."""
    for entry in sorted(saved.keys() & reloaded.keys() - LOADED):
        if _plain(saved[entry]) != _plain(reloaded[entry]):
            return f"config.{entry} is {reloaded[entry]!r}, not {saved[entry]!r}"
    return None


def _plain(entry: Any) -> Any:
    """An entry as JSON holds it."""
    return json.loads(json.dumps(entry, default=str, sort_keys=True))


def _share_tensors(model: PreTrainedModel, other: PreTrainedModel) -> None:
    """Let another model hold the very tensors of a model."""
    for mine, theirs in ((model.named_parameters(), other.parameters()), (model.named_buffers(), other.buffers())):
        for (_, tensor), same in zip(mine, theirs, strict=True):
            same.data = tensor.data
