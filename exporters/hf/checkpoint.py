"""Save: the compact Hugging Face checkpoint, reloaded and compared bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from exporters.hf.modelling import needs_modelling_file, save_with_modelling_file
from passes.errors import PostconditionError
from passes.models import Parity, base_model, model_class, resized, respond
from passes.pipeline import Pass, PassResult, Program, RunContext


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

    def ensures(self, before: Program, after: Program) -> tuple[Parity, ...]:
        """Reload and compare."""
        model = base_model(after.model)
        reloaded = _load(type(model), self.folder) if _is_own(type(model)) else reload(self.folder)
        reloaded = reloaded.to(next(model.parameters()).device)
        different = first_different_tensor(model, reloaded)
        if different is not None:
            raise PostconditionError(f"pass 'save' wrote a checkpoint whose {different} is not what was saved")
        response = respond(reloaded, after.probe)
        return (response.compare("save", respond(model, after.probe), tolerance=0.0),)


def save_checkpoint(model: PreTrainedModel, processor: Processor | None, folder: Path) -> None:
    """Write a model, and its tokenizer or image processor if it has one, in Hugging Face's format; safetensors only."""
    if needs_modelling_file(model):
        save_with_modelling_file(model, folder)
    else:
        model.save_pretrained(folder)
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


def _is_own(kind: type[PreTrainedModel]) -> bool:
    """Whether a class is the user's: neither one of transformers' nor one that lpc resized."""
    return not kind.__module__.startswith(("transformers.", resized.__name__))


def first_different_tensor(model: PreTrainedModel, other: PreTrainedModel) -> str | None:
    """The name of the first parameter that is not bit-equal in both, or None."""
    theirs: dict[str, torch.Tensor] = dict(other.named_parameters())
    mine: dict[str, torch.Tensor] = dict(model.named_parameters())
    if set(theirs) != set(mine):
        return min(set(theirs) ^ set(mine))
    return next((name for name, value in mine.items() if not _bit_equal(value, theirs[name])), None)


def _bit_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
