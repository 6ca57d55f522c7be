"""Weights in, all of them: a checkpoint is held against its model before memory is taken, then loaded.

The comparison is transformers' own loading onto the meta device: the same renaming and stacking of tensors, no data.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from passes.errors import LpcError, ModelError
from passes.models import vendor
from passes.models.fit import Misfit
from passes.models.reasons import reason
from passes.models.stock import twin_of
from passes.models.unloaded import Unloaded
from passes.places import Place
from passes.stored import DTYPES, StoredTensor, stored_files, stored_tensors

logger = logging.getLogger(__name__)

BUFFER_BYTES = 256 << 20
"""What a model may hold beside its weights, or as much as these: masks and positions that a configuration sizes."""

OLD_BUFFERS = ("masked_bias",)
"""Constants that old checkpoints hold and no class has any more."""


def load_model(
    kind: type[PreTrainedModel], place: Place, config: PreTrainedConfig, packing: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """The model of a place, with all its weights and in evaluation mode; in ``packing``, if that is given.

    Raises ModelError for tensors that are missing, mis-shaped, without a place or no floating-point numbers, and for
    what cannot be read.
    """
    stored = None
    if place.folder is not None and place.gguf is None:
        stored = stored_tensors(place.folder, getattr(config, "transformers_weights", None))
    elif place.gguf is None:
        logger.debug("%s is on the hub: its headers are read once it is here", place.name)
    try:
        with quiet():
            arguments = {**place.arguments, "use_safetensors": place.gguf is None, "ignore_mismatched_sizes": True}
            _check_constants(kind, place.name, config)
            if stored is not None:
                _check_packed(place.name, stored, config)
            if place.gguf is None:
                _check(kind, place.name, arguments, stored)
            model: PreTrainedModel
            model, info = kind.from_pretrained(**{**arguments, **(packing or {})}, output_loading_info=True)
    except LpcError:
        raise
    except Exception as error:
        ways = {"attn_implementation": vendor.attention_of(config), "experts_implementation": vendor.experts_of(config)}
        ways = {name: way for name, way in ways.items() if way not in ("eager", "sdpa")}
        raise unreadable(place.name, "weights", error, {**config.to_dict(), **ways}) from error
    _misfit(model, info, config).check(place.name, f"the weights of {kind.__name__}", model.state_dict().keys())
    dense_weights(model.config, model)
    keep_own_head(model, place.name)
    if stored is not None:
        _say_rounding(place.name, stored, model.dtype)
    return model.eval()


def unloaded(kind: type[PreTrainedModel], folder: Path, config: PreTrainedConfig) -> Unloaded:
    """The model of a folder on the meta device, its checkpoint held against it; no weights are read.

    Raises what ``load_model`` raises.
    """
    place, weights = Place(str(folder), folder), getattr(config, "transformers_weights", None)
    stored = stored_tensors(folder, weights)
    try:
        with quiet():
            _check_constants(kind, place.name, config)
            model = _check(
                kind, place.name, {**place.arguments, "use_safetensors": True, "ignore_mismatched_sizes": True}, stored
            )
    except LpcError:
        raise
    except Exception as error:
        raise unreadable(place.name, "weights", error) from error
    _say_rounding(place.name, stored, model.dtype)
    return Unloaded(model.eval(), stored_files(folder, weights))


def unreadable(name: str, what: str, error: Exception, values: Mapping[str, Any] = MappingProxyType({})) -> ModelError:
    """The error for something that transformers could not read, with its own words; ``values``: the configuration's."""
    says = _entry_in(error, values)
    hub = "" if Path(name).exists() else " (there is no such folder, so it was taken for a hub name)"
    return ModelError(f"the {what} of {name}{hub} cannot be loaded: {reason(error)}{says}")


def _entry_in(error: Exception, values: Mapping[str, Any]) -> str:
    """The entry of a configuration whose text another library did not know, where its error does not name it."""
    text = str(error)
    squeezed = text.lower().replace("_", "").replace(" ", "")
    for name, value in values.items():
        if isinstance(value, dict):
            inside = _entry_in(error, value)
            if inside:
                return inside
        elif value and str(name).endswith("_implementation") and str(value).replace("_", "") in squeezed:
            return f"; config.json says {name} = {value!r}: remove the entry, or install what it needs"
        elif isinstance(value, str) and f"'{value}'" in text and str(name) not in text:
            return f"; config.json says {name} = {value!r}: correct the entry"
        if f"'{name}'" in text and name not in ("type", "factor") and not isinstance(name, int) and len(str(name)) < 3:
            return f"; config.json has an entry {name!r}: correct it"
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' loading report and bars off inside the block, and as they were after it."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _check(
    kind: type[PreTrainedModel], name: str, arguments: Mapping[str, Any], stored: Mapping[str, StoredTensor] | None
) -> PreTrainedModel:
    """Hold the checkpoint against its class without taking memory; returns the model on the meta device."""
    empty: PreTrainedModel
    empty, info = kind.from_pretrained(**arguments, device_map="meta", output_loading_info=True)
    _misfit(empty, info, empty.config).check(name, f"the weights of {kind.__name__}", empty.state_dict().keys())
    constants = {key for key, _ in empty.named_buffers()}
    for key, tensor in (stored or {}).items():
        if tensor.dtype not in DTYPES and not _is_constant(key, constants):
            raise ModelError(
                f"{name} holds {key} as {tensor.dtype}: lpc prunes weights in floating point (F32, F16, BF16); hand "
                "over the model that this one was quantised from, or save it dequantised"
            )
    return empty


def _check_packed(name: str, stored: Mapping[str, StoredTensor], config: PreTrainedConfig) -> None:
    """Raise ModelError where a configuration says that weights are packed, and the files hold dense ones."""
    said: Any = getattr(config, "quantization_config", None)
    if said and not dense_weights(config) and all(tensor.dtype in DTYPES for tensor in stored.values()):
        raise ModelError(
            f"config.json of {name} has a quantization_config, and its weights are dense: remove that entry, which was "
            "left over, or hand over the packed weights"
        )


def _check_constants(kind: type[PreTrainedModel], name: str, config: PreTrainedConfig) -> None:
    """Raise ModelError where the configuration wants more memory for constants than weights give a reason for."""
    twin = twin_of(kind, config)
    weights = sum(p.numel() * p.element_size() for p in twin.parameters())
    beside = sum(b.numel() * b.element_size() for b in twin.buffers())
    if beside > max(BUFFER_BYTES, weights):
        raise ModelError(
            f"the configuration of {name} wants {beside / 2**30:,.1f} GiB of constants beside "
            f"{weights / 2**30:.1f} GiB of weights: correct its number of positions"
        )


def _misfit(model: PreTrainedModel, info: Mapping[str, Any], config: PreTrainedConfig) -> Misfit:
    """What transformers found, without what is no fault: constants of old files, the heads of pre-training."""
    unexpected = set(info["unexpected_keys"])
    if unexpected:
        constants = {name for name, _ in model.named_buffers()}
        unexpected = {name for name in unexpected if not _is_constant(name, constants)}
    if unexpected:
        others = unexpected & _heads_beside(type(model), config)
        if others:
            logger.warning("left out, since %s has no such head: %s", type(model).__name__, ", ".join(sorted(others)))
        unexpected -= others
    mismatched = {name: (tuple(stored), tuple(wanted)) for name, stored, wanted in info["mismatched_keys"]}
    return Misfit(set(info["missing_keys"]), unexpected, mismatched)


def _is_constant(name: str, constants: Collection[str]) -> bool:
    """Whether a stored tensor is a buffer, by name up to the model's own prefix."""
    return name.endswith(OLD_BUFFERS) or any(
        name == own or own.endswith(f".{name}") or name.endswith(f".{own}") for own in constants
    )


def _heads_beside(kind: type[PreTrainedModel], config: PreTrainedConfig) -> set[str]:
    """The tensors that the same model has without a head, or for pre-training: a pooler, BERT's next sentence head."""
    names: set[str] = set()
    for auto in ("AutoModel", "AutoModelForPreTraining"):
        for other in vendor.classes_for(auto, config):
            found = twin_of(other, config).state_dict().keys()
            names |= {*found, *(f"{kind.base_model_prefix}.{name}" for name in found)}
    return names


def dense_weights(config: PreTrainedConfig, model: PreTrainedModel | None = None) -> bool:
    """Whether a configuration says that its weights came out of a GGUF file, which are dense by then.

    What the loader left behind, which says that they were quantised, is taken off the configuration's ``model``.
    """
    quantisation: Any = getattr(config, "quantization_config", None)
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    found = str(getattr(quantisation, "quant_method", method) or "").rpartition(".")[2].lower() == "gguf"
    if found and model is not None:
        del config.quantization_config
        vendor.forget_quantizer(model)
    return found


def keep_own_head(model: PreTrainedModel, name: str) -> None:
    """Say in the configuration that the head is not tied, where it says so but the two are not one tensor."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if (
        tied
        and head is not None
        and head.weight is not embeddings.weight
        and head.weight.shape == embeddings.weight.shape
    ):
        logger.warning(
            "%s says tie_word_embeddings, but its head is not its embedding: both are kept",
            name,
        )
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False


def _say_rounding(name: str, stored: Mapping[str, StoredTensor], dtype: torch.dtype) -> None:
    found = {DTYPES[tensor.dtype] for tensor in stored.values() if tensor.dtype in DTYPES}
    wanted = str(dtype).removeprefix("torch.")
    if found - {wanted}:
        logger.warning(
            "%s holds tensors in %s, and all are loaded in %s, as its config.json says",
            name, ", ".join(sorted(found)), wanted,
        )  # fmt: skip
