"""ONNX folders and the calls that are timed on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from exporters.calls.providers import MEMORY, provider_named
from passes.errors import MissingFileError, ModelError, UnsupportedModelError

Phase = Literal["prefill", "decode", "forward"]
Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the graph: ``batch`` sequences of ``tokens`` new tokens each, after ``past`` cached ones.

    ``forward`` is the one call of a model without a cache; ``tokens`` is 0 where its rows are images.
    """

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


def call_grid(batches: tuple[int, ...], prefill_tokens: tuple[int, ...], decode_pasts: tuple[int, ...]) -> list[Call]:
    """Every prefill and every decode step, for every batch size."""
    prefills = [(Call(phase="prefill", batch=b, tokens=t, past=0)) for t in prefill_tokens for b in batches]
    return prefills + [Call(phase="decode", batch=b, tokens=1, past=p) for p in decode_pasts for b in batches]


def forward_grid(batches: tuple[int, ...], tokens: tuple[int, ...]) -> list[Call]:
    """The one call of a model without a cache, for every length and batch size."""
    return [Call(phase="forward", batch=b, tokens=t, past=0) for t in tokens for b in batches]


GROUP_QUERY_NODE = "GroupQueryAttention"

ENDLESS = ("rope_parameters", "rope_theta", "alibi")
"""Entries of a configuration (MPT has them in ``attn_config``) whose positions go on beyond the context."""


@dataclass(frozen=True, kw_only=True)
class OnnxFolder:
    """An ONNX model in one graph on disk: where it is, and what the configurations beside it say.

    ``inputs`` are the graph's; ``config`` is the model's, empty if there is none. ``has_table``: whether the graph
    looks positions up in a table, beyond which it does not run.
    """

    path: Path
    inputs: tuple[str, ...]
    context_length: int | None
    head_size: int | None
    config: Mapping[str, Any]
    has_table: bool = False

    @classmethod
    def find(cls, folder: Path) -> OnnxFolder:
        """``folder`` is an ONNX folder, or an lpc output that holds one in ``onnx/``.

        Raises ``MissingFileError``, ``ModelError`` (unreadable), ``UnsupportedModelError`` for an encoder-decoder.
        """
        places = [folder / "onnx" / "model.onnx", folder / "model.onnx"]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            _refuse_encoder_decoder([place.with_name("encoder_model.onnx") for place in places])
            _refuse_several([place.parent for place in places])
            raise MissingFileError(
                f"no ONNX model in {folder}: neither onnx/model.onnx nor model.onnx is there; make one with lpc export"
            )
        genai = _read(path.with_name("genai_config.json")).get("model", {})
        config = _read(path.with_name("config.json"))
        graph = _graph(path)
        context = next((config[key] for key in ("max_position_embeddings", "n_positions") if config.get(key)), None)
        return cls(
            path=path,
            inputs=tuple(each.name for each in graph.input),
            context_length=genai.get("context_length", context),
            head_size=genai.get("decoder", {}).get("head_size"),
            config=config,
            has_table=any(each.op_type == GROUP_QUERY_NODE and any(each.input[7:8]) for each in graph.node),
        )

    @property
    def vocabulary(self) -> int | None:
        """Tokens that the model knows, if its configuration says."""
        found: int | None = self.config.get("vocab_size")
        return found

    @property
    def bounded(self) -> bool:
        """Whether the model has no positions beyond its context, so that it cannot run there."""
        from passes.families import family_named  # needs torch, which whoever only runs graphs does without

        family = family_named(str(self.config.get("model_type")))
        entries = {**self.config, **(self.config.get("attn_config") or {})}
        endless = (family is not None and family.endless) or any(entries.get(key) for key in ENDLESS)
        return self.context_length is not None and (self.has_table or not endless)

    @property
    def has_cache(self) -> bool:
        """Whether the graph is a decoder's, with a key-value cache."""
        return any(name.startswith("past_key_values.") for name in self.inputs)

    @property
    def takes_images(self) -> bool:
        """Whether the graph takes images."""
        return "pixel_values" in self.inputs

    @property
    def file_bytes(self) -> int:
        """Size of the graph and of the weights beside it."""
        return sum(each.stat().st_size for each in self.path.parent.glob(f"{self.path.name}*"))


def _refuse_encoder_decoder(places: list[Path]) -> None:
    if any(place.is_file() for place in places):
        raise UnsupportedModelError(
            "the benchmark times models in one graph, model.onnx; this one is an encoder-decoder in two, "
            "encoder_model.onnx and decoder_model.onnx"
        )


def _refuse_several(folders: list[Path]) -> None:
    found = [each.parent for folder in folders for each in sorted(folder.glob("*/model.onnx"))]
    if found and found[0].name != "onnx":
        names = ", ".join(each.name for each in found)
        raise MissingFileError(
            f"{found[0].parent} holds packages of several precisions ({names}): name one, {found[0]}"
        )


def _graph(path: Path) -> onnx.GraphProto:
    try:
        return onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's errors share no other base class
        raise ModelError(f"{path} cannot be read as an ONNX graph ({error}); export the model again") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}); export the model again") from error
    return values


def element_type(named: str) -> ir.DataType:
    """The type that onnxruntime calls ``tensor(float16)`` and the like."""
    return ir.DataType[named.removeprefix("tensor(").removesuffix(")").upper()]


class Graph:
    """A loaded graph that can be fed for any call."""

    def __init__(self, folder: OnnxFolder, threads: int, provider: str = "cpu") -> None:
        """Load the session on a provider (``cpu``, ``cuda``, ...), on the host with ``threads`` threads.

        Raises ``OptionError`` if there is no such provider, ``ModelError`` if onnxruntime refuses.
        """
        wanted = provider_named(provider)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")  # else idle threads slow the other model
        try:
            self.session = onnxruntime.InferenceSession(str(folder.path), options, providers=[wanted])
        except Exception as error:  # onnxruntime's errors share no other base class
            raise ModelError(f"onnxruntime cannot load {folder.path}: {error}") from error
        if wanted not in self.session.get_providers():
            raise ModelError(f"onnxruntime cannot start {wanted} for {folder.path}: are its libraries installed?")
        self._memory = MEMORY.get(wanted)
        self.folder = folder
        self.inputs = {each.name: each for each in self.session.get_inputs()}

    def feeds(self, call: Call) -> Feeds:
        """Random token ids and cache, the same for every model with the same shapes; only inputs the graph has."""
        generator = np.random.default_rng(0)
        batch, past, length = call.batch, call.past, call.length
        positions = np.tile(np.arange(past, length, dtype=np.int64), (batch, 1))
        values: Feeds = {
            "input_ids": generator.integers(0, self.vocabulary, positions.shape, dtype=np.int64),
            "attention_mask": np.ones((batch, length), np.int64),
            "position_ids": positions,
            "token_type_ids": np.zeros(positions.shape, np.int64),
        }
        values = {name: value for name, value in values.items() if name in self.inputs}
        if self.folder.takes_images:
            drawn = generator.standard_normal((batch, *self._image_shape()), dtype=np.float32)
            values["pixel_values"] = drawn.astype(self._type("pixel_values"))
        for name in self.cache_inputs:
            heads, size = self._cache_shape(name)
            drawn = generator.standard_normal((batch, heads, past, size), dtype=np.float32)
            values[name] = drawn.astype(self._type(name))
        return values

    def ready(self, call: Call) -> Callable[[], None]:
        """One call, its feeds where the provider computes; the outputs stay there and are dropped."""
        feeds = self.feeds(call)
        if self._memory is None:
            return lambda: self.run(feeds)
        binding = self.session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, self._memory))
        for output in self.session.get_outputs():
            binding.bind_output(output.name, self._memory)

        def bound() -> None:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return bound

    def run(self, feeds: Feeds) -> None:
        """One call; the outputs are computed and dropped."""
        self.session.run(None, feeds)

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model knows, or at least of logits."""
        if self.folder.vocabulary is not None:
            return self.folder.vocabulary
        size = self.session.get_outputs()[0].shape[-1]
        return size if isinstance(size, int) else 2

    @property
    def cache_inputs(self) -> list[str]:
        """Names of the cache inputs."""
        return [name for name in self.inputs if name.startswith("past_key_values.")]

    @property
    def kv_bytes_per_token(self) -> int:
        """What one token of one sequence adds to the cache."""
        sizes = ((self._cache_shape(name), self._type(name)) for name in self.cache_inputs)
        return sum(heads * size * kind.itemsize for (heads, size), kind in sizes)

    def _type(self, name: str) -> np.dtype[Any]:
        found: np.dtype[Any] = element_type(self.inputs[name].type).numpy()
        return found

    def _image_shape(self) -> tuple[int, ...]:
        shape = self.inputs["pixel_values"].shape[1:]
        if not all(isinstance(size, int) for size in shape):
            raise ModelError(f"{self.folder.path}: the size of an image is not known from the graph ({shape})")
        return tuple(shape)

    def _cache_shape(self, name: str) -> tuple[int, int]:
        _, heads, _, size = self.inputs[name].shape
        size = size if isinstance(size, int) else self.folder.head_size
        if not isinstance(heads, int) or size is None:
            raise ModelError(f"{self.folder.path}: KV heads and head size of {name} are not known from the graph")
        return heads, size
