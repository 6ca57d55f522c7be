"""A decoder's graph run a layer at a time, so that no session holds more of it than one layer, or the head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from exporters.onnx.decoder import LayerValues
from exporters.onnx.rewrite import IR_VERSION, save
from exporters.onnx.session import ATTENTION_ENTRY, OnnxModel
from exporters.options import GROUP_QUERY

PIECE_FILE = ".piece.onnx"


@dataclass(frozen=True)
class Pieces:
    """A graph that is loaded from ``folder``, or whose weights are read as they are asked for, and what its layers are.

    A piece lies in ``folder`` while it runs. ``compact`` is as in ``OnnxModel``.
    """

    model: ir.Model
    layers: Sequence[LayerValues]
    folder: Path

    @property
    def compact(self) -> bool:
        """Whether the cache has the real tokens of each row first."""
        return bool(self.model.metadata_props.get(ATTENTION_ENTRY) == GROUP_QUERY)

    def __call__(self, calls: Sequence[Mapping[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """All outputs by name of each call, piece after piece; a cache that is not given has length zero."""
        states = [self._empty(len(call["input_ids"])) | dict(call) for call in calls]
        for inputs, outputs in self._ends():
            with self._opened(inputs, outputs) as piece:
                for state in states:
                    state |= piece({name: state[name] for name in inputs})
        names = [str(each.name) for each in self.model.graph.outputs]
        return [{name: state[name] for name in names} for state in states]

    def _empty(self, batch: int) -> dict[str, torch.Tensor]:
        shapes = {str(each.name): each.shape for each in self.model.graph.inputs}
        pasts = {name: shape for name, shape in shapes.items() if name.startswith("past_key_values.") and shape}
        return {name: torch.zeros(batch, int(shape[1]), 0, int(shape[3])) for name, shape in pasts.items()}

    def _ends(self) -> Iterator[tuple[list[str], list[str]]]:
        """What each piece reads and gives: the embedding, the layers, and what is behind them."""
        shared = [str(each.name) for each in self.model.graph.inputs]
        shared = [name for name in shared if not name.startswith("past_key_values.")]
        yield shared, list(self.layers[0].reads)
        for layer in self.layers:
            gives = [*(name for name in layer.leaves if name not in layer.reads), *layer.present]
            if gives:
                yield [*shared, *layer.reads, *layer.past], gives
        yield [*shared, *self.layers[-1].leaves], ["logits"]

    @contextmanager
    def _opened(self, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[OnnxModel]:
        graph = ir.convenience.extract(self.model.graph, inputs, outputs)
        kind = next(each.type for each in self.model.graph.outputs)
        for value in (*graph.inputs, *graph.outputs):
            value.type = value.type or kind
        piece = ir.Model(graph, ir_version=IR_VERSION)
        path = self.folder / PIECE_FILE
        try:
            if any(isinstance(each.const_value, ir.ExternalTensor) for each in graph.initializers.values()):
                ir.save(piece, path)  # its weights stay where they are
            else:
                save(piece, path)
            yield OnnxModel(path)
        finally:
            for each in self.folder.glob(f"{PIECE_FILE}*"):
                each.unlink()
