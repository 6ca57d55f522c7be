"""Specimens of Llama-like decoders: chains of attention blocks and of MLPs of one width, written by the builder."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from exporters.files import MODEL_FILE
from exporters.latency.curve import Curve
from exporters.latency.specimens import Key, Specimen, Terms, blocks_for, channel_counts, head_counts
from exporters.latency.table import ATTENTION
from exporters.onnx import DATA_FILE, GraphBuilder, Precision, build_decoder, why_not_group_query
from exporters.options import MAX_OPSET, PLAIN, OnnxOptions
from passes.errors import UnsupportedModelError
from passes.graph import Kind, PruningGraph, Width
from passes.models import twin_of

EMPTY, WHOLE = "empty", "whole"
"""Names of the specimens without blocks, and with whole layers between the model's own embedding and head."""

FEW_TOKENS = 8
"""Vocabulary of a chain, whose head must not count."""

MOST_HEADS = 8
SIXTEENTHS = (0.5, 1, 2, 4, 6, 8, 10, 12, 14, 16)
LAYER = "model.layers.0."
PLACES = 65536
"""More than a specimen has parameters."""

SPREAD = 0.02
"""Standard deviation of the random weights: activations stay far from denormal numbers, which are slow."""


@dataclass(frozen=True)
class BlockRoute:
    """Times a chain of equal blocks a width and count, an empty chain, and a few whole dense layers.

    A block takes (chain - empty) / blocks; the constant is what is left of the whole layers without their blocks. Every
    block has numbers of its own: onnxruntime keeps equal weights once, and would read them from the cache.
    ``group_query``: whether attention is GroupQueryAttention (docs/onnx.md).
    """

    twin: PreTrainedModel
    graph: PruningGraph
    precision: Precision
    cache_bytes: int
    group_query: bool
    pool: _Pool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pool", _Pool(max(math.prod(shape) for shape in self.graph.shapes.values())))

    @classmethod
    def of(
        cls,
        model_type: type[PreTrainedModel],
        config: PreTrainedConfig,
        graph: PruningGraph,
        precision: Precision,
        cache_bytes: int,
        attention: str,
    ) -> BlockRoute:
        """The route for a model of this configuration, with the ``OnnxOptions.attention`` of its package.

        Raises UnsupportedModelError where its layers differ.
        """
        layers = {dimension.layer for dimension in graph.dimensions if dimension.width in _widths(graph)}
        of_layer = [_layer_shapes(graph, layer) for layer in sorted(layers)]
        if any(shapes != of_layer[0] for shapes in of_layer):
            raise UnsupportedModelError("latency is timed for models whose layers are alike; here their sizes differ")
        twin: Any = twin_of(model_type, config)
        twin.model.layers = twin.model.layers[:1]
        return cls(twin, graph, precision, cache_bytes, attention != PLAIN and why_not_group_query(twin) is None)

    def grid(self) -> dict[str, tuple[int, ...]]:
        """The counts that are timed, a width."""
        return {
            width.name: channel_counts(width, SIXTEENTHS) if width.kind.is_fine else head_counts(width, MOST_HEADS)
            for width in _widths(self.graph).values()
        }

    def specimens(self) -> list[Specimen]:
        """The chains of every width and count, the empty one, and the whole layers."""
        points = [(name, count) for name, counts in self.grid().items() for count in counts]
        return [Specimen(key, partial(self._write, key)) for key in [(EMPTY, 0), *points, (WHOLE, self._whole_layers)]]

    def terms(self, seconds: Mapping[Key, float]) -> Terms:
        """Blocks from chains, the constant from the whole layers; it is at least what the empty chain takes."""
        empty, curves = seconds[EMPTY, 0], {}
        for name, counts in self.grid().items():
            each = {count: (seconds[name, count] - empty) / self.blocks(name, count) for count in counts}
            curves[name] = Curve.fitted(each)
        layer = sum(curve.seconds[-1] for curve in curves.values())
        whole = seconds[WHOLE, self._whole_layers]
        return Terms(max(empty, whole - self._whole_layers * layer), curves)

    def blocks(self, name: str, count: int) -> int:
        """Blocks of a chain."""
        kept = self._kept({name: count})
        part = sum(self.graph.numel(f"{LAYER}{each}", kept) for each in self._part_shapes(name))
        return blocks_for(part * self._itemsize, self._model_bytes, self.cache_bytes)

    @property
    def _whole_layers(self) -> int:
        layer = sum(self.graph.numel(f"{LAYER}{name}", {}) for name in _layer_shapes(self.graph, 0))
        layers = len({dimension.layer for dimension in self.graph.dimensions if dimension.width in _widths(self.graph)})
        return min(layers, blocks_for(layer * self._itemsize, self._model_bytes, self.cache_bytes))

    @property
    def _itemsize(self) -> int:
        return self.precision.torch_dtype.itemsize

    @property
    def _model_bytes(self) -> int:
        return self.graph.parameters() * self._itemsize

    def _kept(self, counts: Mapping[str, int]) -> dict[str, int]:
        return {each.name: counts[each.width] for each in self.graph.dimensions if each.width in counts}

    def _part_shapes(self, name: str) -> list[str]:
        """Parameters, relative to the layer, of the block that a width belongs to."""
        attention = _widths(self.graph)[name].kind in ATTENTION
        prefixes = ("self_attn.", "input_layernorm.") if attention else ("mlp.", "post_attention_layernorm.")
        return [each for each in _layer_shapes(self.graph, 0) if each.startswith(prefixes)]

    def _write(self, key: Key, folder: Path) -> None:
        name, count = key
        self.pool.rewind()
        model: Any = copy.deepcopy(self.twin)
        whole, dense = name == WHOLE, self._kept({})
        model.model.layers = nn.ModuleList(
            self._layer(name, dense if whole else self._kept({name: count}))
            for _ in range(count if whole else 0 if name == EMPTY else self.blocks(name, count))
        )
        self._fill_ends(model, rows=None if whole else FEW_TOKENS)
        graph = GraphBuilder(self.precision)
        decoder = build_decoder(model, graph, group_query=self.group_query)
        graph.save(folder / MODEL_FILE, decoder.inputs, decoder.outputs, opset=MAX_OPSET, data_file=DATA_FILE)
        self.precision.finish(OnnxOptions(), folder / MODEL_FILE)

    def _layer(self, name: str, kept: Mapping[str, int]) -> nn.Module:
        layer: nn.Module = copy.deepcopy(cast(Any, self.twin).model.layers[0])
        if name != WHOLE:
            gone = "mlp" if _widths(self.graph)[name].kind in ATTENTION else "self_attn"
            setattr(layer, gone, None)
        for each, _ in list(layer.named_parameters()):
            self.pool.fill(layer, each, self.graph.shape(f"{LAYER}{each}", kept))
        return layer

    def _fill_ends(self, model: Any, rows: int | None) -> None:
        """Embedding, last norm and head with weights, the first ``rows`` tokens of them if not all."""
        tied = model.lm_head.weight is model.model.embed_tokens.weight
        for module in (model.model.embed_tokens, model.model.norm, model.lm_head):
            for name, parameter in list(module.named_parameters()):
                shape = tuple(parameter.shape)
                self.pool.fill(module, name, (rows, *shape[1:]) if rows and module is not model.model.norm else shape)
        if tied:
            model.lm_head.weight = model.model.embed_tokens.weight
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)


class _Pool:
    """Random numbers that all weights are views of, each from another place, so that no two are equal."""

    def __init__(self, largest: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._numbers = torch.empty(largest + PLACES).normal_(0, SPREAD, generator=generator)
        self._next = 0

    def rewind(self) -> None:
        """Start again, for the next model."""
        self._next = 0

    def fill(self, module: nn.Module, name: str, shape: Sequence[int]) -> None:
        """Give a module a parameter of this shape."""
        path, _, leaf = name.rpartition(".")
        size, self._next = math.prod(shape), (self._next + 1) % PLACES
        values = self._numbers[self._next : self._next + size].view(*shape)
        setattr(module.get_submodule(path), leaf, nn.Parameter(values, requires_grad=False))


def _widths(graph: PruningGraph) -> dict[str, Width]:
    """The widths of heads and of MLP channels, by name."""
    return {width.name: width for width in graph.widths if width.kind in (*ATTENTION, Kind.MLP_CHANNELS)}


def _layer_shapes(graph: PruningGraph, layer: int) -> dict[str, tuple[int, ...]]:
    prefix = f"model.layers.{layer}."
    return {name.removeprefix(prefix): shape for name, shape in graph.shapes.items() if name.startswith(prefix)}
