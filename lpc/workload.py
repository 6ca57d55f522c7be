"""ONNX decoder folders and the workloads that are timed on them. Imports no torch: the memory probe runs this file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from passes.errors import MissingFileError, ModelError

Phase = Literal["prefill", "decode"]
Feeds = dict[str, NDArray[Any]]

NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One call of the graph: ``batch`` sequences of ``tokens`` new tokens each, after ``past`` cached ones."""

    phase: Phase
    batch: int
    tokens: int
    past: int

    @property
    def key(self) -> str:
        """Short unique name, e.g. ``decode_b1_t1_p128``."""
        return f"{self.phase}_b{self.batch}_t{self.tokens}_p{self.past}"

    @property
    def length(self) -> int:
        """Tokens of a sequence after the call."""
        return self.tokens + self.past


def workload_grid(
    batches: tuple[int, ...], prefill_tokens: tuple[int, ...], decode_pasts: tuple[int, ...]
) -> list[Workload]:
    """Every prefill and every decode step, for every batch size."""
    prefills = [(Workload(phase="prefill", batch=b, tokens=t, past=0)) for t in prefill_tokens for b in batches]
    return prefills + [Workload(phase="decode", batch=b, tokens=1, past=p) for p in decode_pasts for b in batches]


@dataclass(frozen=True, kw_only=True)
class OnnxFolder:
    """An ONNX decoder on disk: where it is, and what its ``genai_config.json`` says."""

    path: Path
    context_length: int | None
    head_size: int | None

    @classmethod
    def find(cls, folder: Path) -> OnnxFolder:
        """``folder`` is an ONNX folder, or an lpc output that holds one in ``onnx/``. Raises ``MissingFileError``."""
        places = [folder / "onnx" / "model.onnx", folder / "model.onnx"]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise MissingFileError(
                f"no ONNX model in {folder}: neither onnx/model.onnx nor model.onnx is there; make one with lpc export"
            )
        model = _genai_model(path.with_name("genai_config.json"))
        return cls(
            path=path, context_length=model.get("context_length"), head_size=model.get("decoder", {}).get("head_size")
        )

    @property
    def file_bytes(self) -> int:
        """Size of the graph and of the weights beside it."""
        return sum(each.stat().st_size for each in self.path.parent.glob(f"{self.path.name}*"))


def _genai_model(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        model: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model"]
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path} cannot be read ({error}); export the model again") from error
    return model


class Decoder:
    """A loaded graph that can be fed with any workload."""

    def __init__(self, folder: OnnxFolder, threads: int) -> None:
        """Load the session on CPU with ``threads`` threads. Raises ``ModelError`` if onnxruntime refuses."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")  # else idle threads slow the other model
        try:
            self.session = onnxruntime.InferenceSession(str(folder.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no other base class
            raise ModelError(f"onnxruntime cannot load {folder.path}: {error}") from error
        self.folder = folder
        self.inputs = {each.name: each for each in self.session.get_inputs()}

    def feeds(self, workload: Workload) -> Feeds:
        """Random token ids and cache, the same for every model with the same shapes; only inputs the graph has."""
        generator = np.random.default_rng(0)
        batch, past, length = workload.batch, workload.past, workload.length
        positions = np.tile(np.arange(past, length, dtype=np.int64), (batch, 1))
        values: Feeds = {
            "input_ids": generator.integers(0, self.vocabulary, positions.shape, dtype=np.int64),
            "attention_mask": np.ones((batch, length), np.int64),
            "position_ids": positions,
        }
        values = {name: value for name, value in values.items() if name in self.inputs}
        for name in self.cache_inputs:
            heads, size = self._cache_shape(name)
            drawn = generator.standard_normal((batch, heads, past, size), dtype=np.float32)
            values[name] = drawn.astype(NUMPY_TYPES[self.inputs[name].type])
        return values

    def run(self, feeds: Feeds) -> None:
        """One call; the outputs are computed and dropped."""
        self.session.run(None, feeds)

    @property
    def vocabulary(self) -> int:
        """Number of logits of a token."""
        size = self.session.get_outputs()[0].shape[-1]
        return size if isinstance(size, int) else 2

    @property
    def cache_inputs(self) -> list[str]:
        """Names of the cache inputs."""
        return [name for name in self.inputs if name.startswith("past_key_values.")]

    @property
    def kv_bytes_per_token(self) -> int:
        """What one token of one sequence adds to the cache."""
        sizes = ((self._cache_shape(name), NUMPY_TYPES[self.inputs[name].type]) for name in self.cache_inputs)
        return sum(heads * size * np.dtype(kind).itemsize for (heads, size), kind in sizes)

    def _cache_shape(self, name: str) -> tuple[int, int]:
        _, heads, _, size = self.inputs[name].shape
        size = size if isinstance(size, int) else self.folder.head_size
        if not isinstance(heads, int) or size is None:
            raise ModelError(f"{self.folder.path}: KV heads and head size of {name} are not known from the graph")
        return heads, size
