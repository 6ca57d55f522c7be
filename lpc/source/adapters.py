"""Adapters in, all of them: a folder in peft's format onto its base, complete; and what is more than LoRA, merged."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, PromptLearningConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from passes.errors import LpcError, ModelError
from passes.models import (
    ADAPTER_FILE,
    Misfit,
    base_model,
    beyond_lora,
    check_adapter_folder,
    quiet,
    reason,
)
from passes.stored import DTYPES, StoredTensor, headers, read_json

logger = logging.getLogger(__name__)

WHAT = "the tensors that its adapter_config.json asks for"
OTHER_BASE = (
    "It was trained on another base or class, or is not whole: name its own base in adapter_config.json "
    "(base_model_name_or_path), or save it again"
)

PREFIX = "base_model.model."
"""What peft puts before the name of every tensor of an adapter."""


def named_base(folder: Path) -> str:
    """The base model that an adapter's configuration names: a folder seen from the adapter's own, or as it stands.

    Raises ModelError if it names none, or itself.
    """
    name = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise ModelError(f"{folder}/adapter_config.json does not name its base model; load the PeftModel yourself")
    beside = folder / name
    found = str(beside) if (beside / "config.json").is_file() else name
    if Path(found).is_dir() and Path(found).resolve() == folder.resolve():
        raise ModelError(f"{folder}/adapter_config.json names its own folder as its base: name the base model there")
    return found


def load_adapter(model: PreTrainedModel | PeftModel, folder: str | Path) -> PeftModel:
    """The model wearing the adapter of a folder in peft's format, trainable, with all of its tensors.

    Raises MissingFileError, or ModelError naming the tensors that find no place, are missing or have another shape.
    """
    path = check_adapter_folder(folder)
    _check_numbers(path)
    stored = headers(path / ADAPTER_FILE)
    base = cast(PreTrainedModel, model.unload()) if isinstance(model, PeftModel) else base_model(model)
    embeddings = _embeddings(base).keys()
    try:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning, "peft")  # an error below
            _check_stored(path, stored, base)
            config = PeftConfig.from_pretrained(str(path))
            more = {"is_trainable": True, "use_safetensors": True, "low_cpu_mem_usage": base.device.type == "meta"}
            worn = PeftModel.from_pretrained(base, str(path), **more, config=config)
    except LpcError:
        raise
    except Exception as error:
        _misfit(stored, _injected(base), whole=False).check(_named(path, base), WHAT, _injected(base), OTHER_BASE)
        raise ModelError(f"the adapter in {path} does not fit the model: {reason(error)}") from error
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in get_peft_model_state_dict(worn, save_embedding_layers=False).items()
    }
    if base.device.type == "meta":
        _give_values(worn, path)
    own = _without_embeddings(stored, embeddings - {name.removeprefix(PREFIX) for name in wanted})
    _misfit(own, wanted, whole=True).check(_named(path, base), WHAT, wanted, OTHER_BASE)
    return worn.eval()


def _give_values(worn: PeftModel, folder: Path) -> None:
    """Have the adapter of a model on the meta device, where peft leaves it too, in memory with its values."""
    stored: dict[str, torch.Tensor] = load_file(folder / ADAPTER_FILE)
    for name, parameter in list(worn.named_parameters()):
        value = stored.get(name.replace(f".{worn.active_adapter}", "")) if ".lora_" in name else None
        if value is not None and value.shape == parameter.shape:
            module, _, leaf = name.rpartition(".")
            setattr(worn.get_submodule(module), leaf, torch.nn.Parameter(value.to(parameter.dtype)))


def _check_numbers(folder: Path) -> None:
    """Raise ModelError for an adapter of a kind that changes no weights, and for one whose scaling is none."""
    file, values = folder / "adapter_config.json", read_json(folder / "adapter_config.json")
    kind = values.get("peft_type")
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
    if known is None or issubclass(known, PromptLearningConfig):
        raise ModelError(
            f"{file} says peft_type = {kind!r}, which changes no weights that could be merged, or is not known to "
            "peft: train a LoRA, or hand over the base model"
        )
    for name in ("r", "lora_alpha") if kind == "LORA" else ():
        value = values.get(name, 8)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ModelError(f"{file} says {name} = {value!r}, which must be a number above 0: correct it")


def check_not_blank(folder: str | Path) -> None:
    """Raise ModelError for an adapter file that holds nothing but zeros or holds NaN: no training leaves either."""
    path = Path(folder) / ADAPTER_FILE
    tensors: dict[str, torch.Tensor] = load_file(path)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{path} holds NaN or infinite values in {name}: take the file that the run wrote")
    if not any(tensor.any() for tensor in tensors.values()):
        raise ModelError(f"{path} holds nothing but zeros: take the file that the run wrote")


def plain_or_lora(
    model: PreTrainedModel | PeftModel, *, embeddings: bool = False
) -> tuple[PreTrainedModel | PeftModel, tuple[str, ...]]:
    """A working copy as lpc can train it, and what was done to it for that: more than one plain LoRA is merged by peft.

    ``embeddings``: the adapter brought embeddings as well, which an adapter that lpc writes would not have.
    Raises ModelError if peft cannot merge it.
    """
    why = beyond_lora(model) if isinstance(model, PeftModel) else None
    why = why or ("the adapter brings embeddings of its own" if embeddings else None)
    if not isinstance(model, PeftModel):
        return model, ()
    if why is None:
        return model, _without_idle(model)
    try:
        merged = model.merge_and_unload(safe_merge=True)
        if not isinstance(merged, PreTrainedModel):
            raise TypeError(f"peft gave a {type(merged).__name__}")
    except Exception as error:
        raise ModelError(
            f"{why}, which is more than plain LoRA, and peft cannot merge it ({reason(error)}): train a plain LoRA, or "
            "hand over a model in whose weights it is merged"
        ) from error
    note = f"{why}, which is more than plain LoRA: it was merged by peft first, and the result pruned as a plain model"
    logger.warning("%s", note)
    return merged.requires_grad_(False).eval(), (note,)


def _without_idle(model: PeftModel) -> tuple[str, ...]:
    """Take the adapters that are not active off a copy, which computes nothing by them; a note says which."""
    idle = [name for name in model.peft_config if name not in model.active_adapters]
    if not idle or not model.active_adapters:
        return ()
    for name in idle:
        model.delete_adapter(name)
    note = f"left out, since not active: the adapter {', '.join(idle)}"
    logger.warning("%s", note)
    return (note,)


def brings_embeddings(folder: Path, base: PreTrainedModel) -> bool:
    """Whether an adapter's file also holds embeddings, or a head, that are not those of the base model."""
    headers(folder / ADAPTER_FILE)
    with safe_open(folder / ADAPTER_FILE, framework="pt") as file:
        names = {name.replace(".base_layer.", "."): name for name in file.keys()}  # noqa: SIM118 - not a mapping
        for name in _embeddings(base):
            own = base.get_parameter(name)
            stored = file.get_tensor(names[PREFIX + name]) if PREFIX + name in names else own
            if stored.shape != own.shape or not torch.equal(stored.to(own), own):
                return True
    return False


def _check_stored(path: Path, stored: Mapping[str, StoredTensor], base: PreTrainedModel) -> None:
    if not stored:
        raise ModelError(f"the adapter in {path} is empty: its file holds no tensors")
    for name, tensor in stored.items():
        if tensor.dtype not in DTYPES:
            raise ModelError(f"the adapter in {path} holds {name} as {tensor.dtype}: save it in floating point")
    for name, shape in _embeddings(base).items():
        found = stored.get(PREFIX + name)
        if found is not None and found.shape != shape:
            raise ModelError(
                f"the adapter in {path} was trained with another vocabulary: {name} is {list(found.shape)} there and "
                f"{list(shape)} in its base: call resize_token_embeddings({found.shape[0]}) on the base model, load "
                "the adapter onto it, and hand over the PeftModel (or save the resized base and name it in the adapter)"
            )


def _embeddings(base: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The shapes of the embedding and of the head, by parameter name."""
    wanted = [module for module in (base.get_input_embeddings(), base.get_output_embeddings()) if module is not None]
    return {
        f"{name}.{leaf}": tuple(parameter.shape)
        for name, module in base.named_modules()
        if any(module is each for each in wanted)
        for leaf, parameter in module.named_parameters(recurse=False)
    }


def _without_embeddings(stored: Mapping[str, StoredTensor], embeddings: Collection[str]) -> dict[str, StoredTensor]:
    """The tensors but for the copies of embeddings that peft saves beside an adapter."""
    names = {PREFIX + name.replace(".base_layer.", ".") for name in embeddings}
    return {name: tensor for name, tensor in stored.items() if name.replace(".base_layer.", ".") not in names}


def _misfit(stored: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]], *, whole: bool) -> Misfit:
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    both = shapes.keys() & wanted.keys()
    return Misfit(
        missing=wanted.keys() - shapes.keys() if whole else (),
        unexpected=shapes.keys() - wanted.keys() if whole else (),
        mismatched={name: (shapes[name], wanted[name]) for name in both if shapes[name] != wanted[name]},
    )


def _injected(base: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The adapter's tensors as peft put them into a model that it then could not load."""
    found: dict[str, Any] = base.state_dict()
    return {PREFIX + name.replace(".default.", "."): tuple(t.shape) for name, t in found.items() if ".lora_" in name}


def _named(path: Path, base: PreTrainedModel) -> str:
    return f"the adapter in {path} (for {base.config.name_or_path or type(base).__name__})"
