"""Folders of sentence-transformers: which module does what, how hidden states are pooled, and the files beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedConfig, PreTrainedModel

from passes.errors import ModelError, UnsupportedModelError
from passes.models import Pooling, PoolingMode, SentenceFiles, Task, embeds, quiet, task_of, unreadable, vendor
from passes.places import Place
from passes.stored import read_json, read_json_list

__all__ = ["MODULES_FILE", "as_embedding", "headless_name", "read_pooling", "sentence_folder"]

logger = logging.getLogger(__name__)

MODULES_FILE = "modules.json"
POOLING_FILE = "config.json"

MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
"""The entries of a pooling configuration, and what newer ones say of the same in ``pooling_mode``."""

MADE_ANEW = frozenset({"config.json", "generation_config.json", "README.md", "tokenizer.json", "tokenizer_config.json"})
"""Files that are written for the smaller model."""
WEIGHTS = (
    ".safetensors", ".bin", ".h5", ".ot", ".msgpack", ".onnx", ".onnx_data", ".pt", ".pth", ".ckpt", ".gguf", ".xml",
)  # fmt: skip
"""How the names of files end that hold the dense model's weights, in whatever format (.xml: OpenVINO's graph)."""
LARGEST = 16 << 20
"""Bytes of a file that is taken along."""


def as_embedding(model: PreTrainedModel, folder: Path | None) -> tuple[str, ...]:
    """Make a model without a head an embedding model, pooled as its folder says; what is to be said of that.

    Models of any other task stay as they are. Raises ModelError, UnsupportedModelError as ``read_pooling`` does.
    """
    if task_of(model) is not Task.FEATURE_EXTRACTION or hasattr(type(model), "headless"):
        return ()
    found = read_pooling(folder)
    if found is not None and folder is not None:
        embeds(model, found, _files(folder))
        return (f"an embedding model, pooled as {MODULES_FILE} says: {found}",)
    pooling = Pooling(mode=PoolingMode.LAST if _only_causal(model.config) else PoolingMode.MEAN)
    embeds(model, pooling)
    return (f"an embedding model; no {MODULES_FILE} says how its vectors are pooled, so: {pooling}",)


def sentence_folder(place: Place) -> Path | None:
    """Where what lies beside a model's weights is: its folder; of a hub model of sentence-transformers, its snapshot in
    the hub's cache, fetched but for the weights. None where there is none, and for GGUF files.

    Raises ModelError if the hub gives only a part.
    """
    if place.folder is not None or not _has_modules(place):
        return place.folder if place.gguf is None else None
    try:
        with quiet():
            return Path(snapshot_download(place.name, ignore_patterns=[f"*{end}" for end in WEIGHTS]))
    except Exception as error:
        raise unreadable(place.name, f"files that {MODULES_FILE} names", error) from error


def _has_modules(place: Place) -> bool:
    """Whether a place is one of sentence-transformers."""
    if place.gguf is not None:
        return False
    if place.folder is not None:
        return (place.folder / MODULES_FILE).is_file()
    return vendor.cached_or_none(place.name, MODULES_FILE) is not None


def headless_name(place: Place, config: PreTrainedConfig) -> str | None:
    """The class that sentence-transformers would load of a place, whatever head its configuration names; else None."""
    if not _has_modules(place):
        return None
    return next((each.__name__ for each in vendor.classes_for("AutoModel", config)), None)


def read_pooling(folder: Path | None) -> Pooling | None:
    """How a folder's vectors are pooled; None where it is no folder of sentence-transformers.

    Raises ModelError for files that cannot be read, UnsupportedModelError for modules and poolings that lpc does not
    know, by name.
    """
    if folder is None or not (folder / MODULES_FILE).is_file():
        return None
    mode, normalise = None, False
    for kind, path in _modules(folder):
        if kind == "Transformer" and not path:
            continue
        if kind == "Pooling":
            mode = _mode(folder / path / POOLING_FILE)
        elif kind == "Normalize":
            normalise = True
        else:
            raise UnsupportedModelError(
                f"{folder / MODULES_FILE} names the module {kind}{f' in {path}' if path else ''}, which lpc does not "
                "know; it knows a Transformer in the folder itself, Pooling and Normalize: hand over a copy of the "
                f"folder without {MODULES_FILE}, and its hidden states are pooled by their mean or last token"
            )
    if mode is None:
        raise UnsupportedModelError(
            f"{folder / MODULES_FILE} names no Pooling, so there is no vector a text: add one, or remove the file"
        )
    return Pooling(mode=mode, normalise=normalise)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """The class of each module, without where it is defined, and its path."""
    said = read_json_list(folder / MODULES_FILE)
    try:
        return [(str(each["type"]).rpartition(".")[2], str(each["path"])) for each in said]
    except (TypeError, KeyError) as error:
        raise ModelError(f"{folder / MODULES_FILE} is no list of modules, each with a type and a path") from error


def _mode(path: Path) -> PoolingMode:
    said = read_json(path)
    named = said.get("pooling_mode")
    named = [named] if isinstance(named, str) else named
    found = named if isinstance(named, list) else [MODES.get(key, key) for key in said if _is_on(said, key)]
    if len(found) == 1 and found[0] in set(PoolingMode):
        return PoolingMode(found[0])
    raise UnsupportedModelError(
        f"{path} pools by {' and '.join(map(str, found)) or 'nothing'}, which lpc does not know; it knows one of "
        f"{', '.join(PoolingMode)}: say one of these, if the model was trained so, or remove {MODULES_FILE} from a copy"
    )


def _is_on(said: Mapping[str, Any], key: str) -> bool:
    return key.startswith("pooling_mode_") and said[key] is True


def _files(folder: Path) -> SentenceFiles:
    """All files of a folder but weights, hidden ones, and what is written anew."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        weights = path.name.endswith((*WEIGHTS, ".index.json")) or path.suffix in WEIGHTS
        if not path.is_file() or hidden or weights or name in MADE_ANEW:
            continue
        if path.stat().st_size > LARGEST:
            logger.warning(
                "%s has more than %d MiB and is not taken along: copy it, if it is needed", path, LARGEST >> 20
            )
            continue
        found[name] = path.read_bytes()
    pooling = next((path for kind, path in _modules(folder) if kind == "Pooling"), None)
    return SentenceFiles(files=tuple(found.items()), pooling=f"{pooling}/{POOLING_FILE}" if pooling else None)


def _only_causal(config: PreTrainedConfig) -> bool:
    """Whether the models of a type read from left to right, so that only the last token has seen them all."""
    causal, masked = (bool(vendor.classes_for(f"AutoModelFor{each}", config)) for each in ("CausalLM", "MaskedLM"))
    return causal and not masked
