"""Who is evaluated: the models and packages found in a folder, and the dense model they came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from exporters.files import PRECISION_ENTRY
from exporters.options import PRECISION_NAMES
from lpc.options import BACKENDS
from lpc.source import load_config
from passes.errors import DataError, MissingFileError, OptionError, UnsupportedModelError
from passes.models import Task, model_class, task_of

__all__ = ["Subject", "context_limit", "find_subjects", "tolerance_of", "weight_dtype"]


@dataclass(frozen=True)
class Subject:
    """One model for one backend. ``folder`` holds its configuration and tokenizer; ``live`` is a model in memory.

    Of several packages ``backend`` also names the precision, such as ``onnx int4``.
    """

    model: str
    backend: str
    folder: Path
    live: PreTrainedModel | None = None

    @property
    def engine(self) -> str:
        """The backend alone: hf, onnx or genai."""
        return self.backend.partition(" ")[0]


def find_subjects(folder: Path, backend: str, dense: Path | PreTrainedModel | None) -> tuple[Subject, ...]:
    """The dense model, then what is in the folder, in the order hf, onnx, genai; of several packages each.

    ``folder`` is an output of ``lpc compress``, a Hugging Face checkpoint or an ONNX folder. Without ``dense``, the
    source that the manifest names is used if it is a local folder that still exists. Raises `MissingFileError`,
    `OptionError` if the backend asked for has nothing to run on, and `UnsupportedModelError` for other models than
    causal language models.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"no such folder: {folder}")
    manifest = _read_json(folder / "lpc.json")
    name = "model" if manifest is None else "pruned"
    checkpoint, packages = _checkpoint(folder), _packages(folder)
    _check_causal(checkpoint or next(iter(packages.values()), None))
    homes = {
        "hf": {} if checkpoint is None else {"": checkpoint},
        "onnx": packages,
        "genai": {each: home for each, home in packages.items() if (home / "genai_config.json").is_file()},
    }
    wanted = BACKENDS if backend == "all" else (backend,)
    found = [Subject(name, f"{each}{more}", home) for each in wanted for more, home in homes[each].items()]
    if not found:
        missing = {"hf": "a checkpoint (config.json and *.safetensors)", "onnx": "an ONNX model", "all": "a model"}
        what = missing.get(backend, "an ONNX package with genai_config.json")
        raise OptionError(
            f"{folder} holds no {what.removeprefix('a ').removeprefix('an ')}: backend {backend} cannot run"
        )
    return (*_dense(dense if dense is not None else _source(manifest), found[0].folder), *found)


def _check_causal(home: Path | None) -> None:
    """Raises UnsupportedModelError for a model of another task, or of none that lpc knows."""
    if home is None or not (home / "config.json").is_file():
        return
    try:
        kind = model_class(load_config(home))
    except UnsupportedModelError:
        raise
    except Exception:  # noqa: BLE001 -- whoever loads the model says what is wrong with it
        return
    task = task_of(kind)
    if task is not Task.CAUSAL_LM:
        raise UnsupportedModelError(
            f"{home} holds a {kind.__name__} ({task}), and lm-eval runs causal language models only: "
            "use lpc.quality(folder, rows) for loss and accuracy"
        )


def context_limit(subject: Subject) -> int | None:
    """The longest input, in tokens, that the subject's configuration allows; None if it does not say."""
    if subject.live is not None:
        value = getattr(subject.live.config, "max_position_embeddings", None)
        return None if value is None else int(value)
    limits = [(_read_json(subject.folder / "config.json") or {}).get("max_position_embeddings")]
    if subject.backend != "hf":
        limits.append((_read_json(subject.folder / "genai_config.json") or {}).get("model", {}).get("context_length"))
    known = [int(limit) for limit in limits if isinstance(limit, int)]
    return min(known, default=None)


def weight_dtype(subject: Subject) -> str:
    """The dtype a package was exported in, from its config.json (float32 if that does not say)."""
    config = _read_json(subject.folder / "config.json") or {}
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def tolerance_of(subject: Subject) -> float:
    """How far a package's precision lets it be from torch, relative to the largest value; 0 if it names none here."""
    from exporters.onnx import PRECISIONS

    name = str((_read_json(subject.folder / "config.json") or {}).get(PRECISION_ENTRY))
    return PRECISIONS[name].tolerance if name in PRECISIONS else 0.0


def _dense(dense: Path | PreTrainedModel | None, tokenizer_folder: Path) -> tuple[Subject, ...]:
    if dense is None:
        return ()
    if isinstance(dense, PreTrainedModel):
        return (Subject("dense", "hf", tokenizer_folder, dense),)
    home = _checkpoint(Path(dense))
    if home is None:
        raise MissingFileError(
            f"{dense} holds no checkpoint (config.json and *.safetensors) to take as the dense model"
        )
    return (Subject("dense", "hf", home),)


def _source(manifest: dict[str, Any] | None) -> Path | None:
    source = (manifest or {}).get("source")
    path = source.get("path") if isinstance(source, dict) else None
    home = Path(path) if isinstance(path, str) and path else None
    return home if home is not None and _checkpoint(home) is not None else None


def _checkpoint(folder: Path) -> Path | None:
    homes = (folder / "hf", folder)
    return next((h for h in homes if (h / "config.json").is_file() and any(h.glob("*.safetensors"))), None)


def _packages(folder: Path) -> dict[str, Path]:
    """The ONNX package, or those of several precisions by what stands behind the backend's name."""
    for home in (folder / "onnx", folder):
        if any(home.glob("*.onnx")):
            return {"": home}
        named = {path.parent.name: path.parent for path in sorted(home.glob("*/*.onnx"))}
        if several := {f" {name}": each for name, each in named.items() if name in PRECISION_NAMES.known()}:
            return several
    return {}


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error})") from error
    return values if isinstance(values, dict) else None
