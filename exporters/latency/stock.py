"""Specimens of any other model in one graph: the stock class with few layers, through torch's export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from exporters.files import MODEL_FILE
from exporters.latency.curve import Curve
from exporters.latency.specimens import Key, Specimen, Terms, blocks_for, channel_counts, head_counts
from exporters.onnx import takes_positions, trace_decoder, trace_single
from exporters.options import MAX_OPSET
from passes.errors import UnsupportedModelError
from passes.graph import Kind, PruningGraph, Width, layer_path
from passes.models import Task, shallow, task_of, vendor
from passes.options import TraceOptions
from passes.shrink import build_compact
from passes.trace import trace

DEPTH = "layers"
"""Name of the specimens that keep all units."""

MOST_HEADS = 3
SIXTEENTHS = (2, 8, 16)
"""Few counts: each is a model to trace, which takes seconds."""

MOST_LAYERS = 4
HEADS = (Kind.KV_GROUPS, Kind.QUERY_HEADS, Kind.EXPERTS)
CHANNELS = (Kind.MLP_CHANNELS, Kind.EXPERT_CHANNELS)


@dataclass(frozen=True)
class StockRoute:
    """Times the model with few layers and with half as many, and, a width and count, with that count in every layer.

    A layer takes (few - half) / their difference, the constant what is left; units that go save what the model got
    faster. What a layer takes beside its units (norms, residual additions) is shared out evenly among its widths.
    """

    model_type: type[PreTrainedModel]
    config: PreTrainedConfig
    graph: PruningGraph
    cache_bytes: int

    def __post_init__(self) -> None:
        widths = {width.name: [0] * self._layers for width in self._widths}
        for dimension in self.graph.dimensions:
            if dimension.width in widths:
                widths[dimension.width][dimension.layer] += 1
        uneven = sorted(name for name, lanes in widths.items() if len(set(lanes)) > 1)
        if uneven or not widths:
            what = f"not all layers have {', '.join(uneven)}" if uneven else "none has units"
            raise UnsupportedModelError(f"latency is timed for models whose layers are alike; {what}")

    def grid(self) -> dict[str, tuple[int, ...]]:
        """The counts that are timed, a width."""
        return {width.name: self._counts(width) for width in self._widths}

    def specimens(self) -> list[Specimen]:
        """The dense model at two depths, and every smaller count of every width at the larger."""
        smaller = [(name, count) for name, counts in self.grid().items() for count in counts[:-1]]
        keys = [(DEPTH, self.few), (DEPTH, self.half), *smaller]
        return [Specimen(key, partial(self._write, key), costly=True) for key in keys]

    def terms(self, seconds: Mapping[Key, float]) -> Terms:
        """See the class."""
        few, half = seconds[DEPTH, self.few], seconds[DEPTH, self.half]
        layer = max(0.0, (few - half) / (self.few - self.half))
        saved = {
            name: {count: (few - seconds[name, count]) / self.few for count in counts[:-1]} | {counts[-1]: 0.0}
            for name, counts in self.grid().items()
        }
        parts = _shares(layer, {name: _saved_by_all(points) for name, points in saved.items()})
        curves = {
            name: Curve.fitted({count: parts[name] - less for count, less in points.items()})
            for name, points in saved.items()
        }
        return Terms(max(0.0, few - self.few * layer), curves)

    @property
    def few(self) -> int:
        """Layers of the specimens."""
        names = [name for name in self.graph.shapes if layer_path(name) != name]
        inside = sum(self.graph.numel(name, {}) for name in names)
        layer_bytes = inside * torch.float32.itemsize // self._layers
        wanted = blocks_for(layer_bytes, self.graph.parameters() * torch.float32.itemsize, self.cache_bytes)
        return max(2, min(wanted, self._layers, MOST_LAYERS))

    @property
    def half(self) -> int:
        """Layers of the shallow specimen."""
        return self.few // 2

    @property
    def _layers(self) -> int:
        return 1 + max(dimension.layer for dimension in self.graph.dimensions)

    @property
    def _widths(self) -> list[Width]:
        return [width for width in self.graph.widths if width.kind in (*HEADS, *CHANNELS)]

    def _counts(self, width: Width) -> tuple[int, ...]:
        """Few counts, of those that the graph allows."""
        wanted = channel_counts(width, SIXTEENTHS) if width.kind in CHANNELS else head_counts(width, MOST_HEADS)
        return tuple(sorted({_nearest(width.counts, count) for count in wanted}))

    def _write(self, key: Key, folder: Path) -> None:
        name, count = key
        config = shallow(self.config, self._layers, count if name == DEPTH else self.few)
        torch.manual_seed(0)
        model: PreTrainedModel = vendor.from_config(self.model_type, config, dtype=torch.float32).eval()
        if name != DEPTH:
            graph = trace(config, torch.float32, model_type=self.model_type, options=self._trace_options())
            kept = {d.name: range(count if d.width == name else d.size) for d in graph.dimensions}
            model = build_compact(model, graph, kept)
        path = folder / MODEL_FILE
        if task_of(self.model_type) is Task.CAUSAL_LM:
            trace_decoder(model, path, opset=MAX_OPSET, positions=takes_positions(model))
        else:
            trace_single(model, path, opset=MAX_OPSET)

    def _trace_options(self) -> TraceOptions:
        custom = any(width.counts != width.stock for width in self.graph.widths)
        query_heads = any(width.kind is Kind.QUERY_HEADS for width in self.graph.widths)
        return TraceOptions(query_heads=query_heads, custom_code=custom)


def _nearest(counts: Sequence[int], wanted: int) -> int:
    return min(counts, key=lambda count: abs(count - wanted))


def _saved_by_all(saved: Mapping[int, float]) -> float:
    """What the first units would save as well: the line through the two smallest counts, at 0."""
    counts = sorted(saved)
    if len(counts) == 1:
        return 0.0
    (x0, x1), (y0, y1) = counts[:2], (saved[counts[0]], saved[counts[1]])
    return max(0.0, y0 - (y1 - y0) * x0 / (x1 - x0))


def _shares(layer: float, saved: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a layer, a width: what all its units save, and of the rest an even part."""
    total = sum(saved.values())
    if total > layer:
        return {name: layer * part / total for name, part in saved.items()}
    return {name: part + (layer - total) / len(saved) for name, part in saved.items()}
