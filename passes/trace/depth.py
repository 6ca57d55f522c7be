"""Depth: whole layers, and attention or MLP blocks, as units. What is sound is proven on the twin (``residual``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from passes.errors import UnsupportedModelError
from passes.families import AttentionBlock, ExpertsBlock
from passes.graph import Dimension, Kind, PruningGraph, Renumbering, Role, layer_path
from passes.models import Task
from passes.shrink import why_another_model
from passes.trace.dimensions import DimensionFinder
from passes.trace.residual import Branch, ResidualStream

LAYERS, BLOCKS = "layers", "blocks"
"""What ``TraceOptions.depth`` may be: whole layers as units, or the attention and the MLP of each layer apart."""


def depth_of(names: Sequence[str] | Mapping[str, object]) -> str | None:
    """The ``TraceOptions.depth`` under which dimensions of these names are found."""
    if str(Kind.LAYERS) in names:
        return LAYERS
    return BLOCKS if {str(Kind.ATTENTION_BLOCKS), str(Kind.MLP_BLOCKS)} & {*names} else None


@dataclass(frozen=True)
class DepthFinder:
    """Finds layers and blocks. In ``twin`` attention is bare and mixtures of experts are hidden."""

    graph: PruningGraph
    config: PreTrainedConfig
    model_type: type[PreTrainedModel]
    twin: PreTrainedModel
    inputs: Mapping[str, torch.Tensor]
    finder: DimensionFinder
    experts: Sequence[ExpertsBlock]

    def found(self, depth: str) -> PruningGraph:
        """The graph with its units of depth.

        Raises UnsupportedModelError with the reason if the model has none; blocks of one kind alone that cannot go are
        left to ``untouched``.
        """
        self._check_decoder()
        stream = ResidualStream(self.twin, self.inputs, self._layers())
        attention, mlps = self._attention_branches(), self._mlp_branches()
        stream.check_identity([*attention, *mlps])
        if depth == LAYERS:
            return self._with([self._whole_layers()], {})
        reasons = {}
        found = [self._blocks(stream, mlps, Kind.MLP_BLOCKS)]
        why_fixed = self._why_fixed_attention()
        if why_fixed is None:
            found.append(self._blocks(stream, attention, Kind.ATTENTION_BLOCKS))
        else:
            reasons[str(Kind.ATTENTION_BLOCKS)] = why_fixed
        return self._with(found, reasons)

    def _with(self, found: Sequence[Dimension], reasons: Mapping[str, str]) -> PruningGraph:
        dimensions = sorted((*self.graph.dimensions, *found), key=lambda d: (d.layer, d.kind))
        return replace(self.graph, dimensions=tuple(dimensions), untouched={**self.graph.untouched, **reasons})

    @property
    def _attention(self) -> Sequence[AttentionBlock]:
        return self.finder.attention

    def _check_decoder(self) -> None:
        causal = [getattr(self.twin.get_submodule(block.path), "is_causal", False) for block in self._attention]
        if self.finder.task is not Task.CAUSAL_LM and not (self.finder.task is not Task.SEQ2SEQ_LM and all(causal)):
            raise UnsupportedModelError(
                f"depth is for causal decoders, and {self.model_type.__name__} is none: no layer or block of it can go"
            )

    def _layers(self) -> list[str]:
        """The paths of the layers, in order, each with one attention block."""
        layers = [layer_path(block.path) for block in self._attention]
        stack = layers[0].rpartition(".")[0]
        if layers != [f"{stack}.{number}" for number in range(int(self.config.num_hidden_layers))]:
            raise UnsupportedModelError(f"the layers {', '.join(layers)} are not one attention block each, in order")
        if len(layers) < 2:
            raise UnsupportedModelError("the model has one layer, which has to stay")
        return layers

    def _attention_branches(self) -> list[Branch]:
        for block in self._attention:
            if block.output_outside is not None:
                raise UnsupportedModelError(f"the output projection of {block.path} lies outside of it")
        exits = [block.group_slices()[-1].module for block in self._attention]
        return [Branch(layer_path(each), each) for each in exits]

    def _mlp_branches(self) -> list[Branch]:
        mixtures = {block.path for block in self.experts}
        exits: dict[str, set[str]] = {layer: set() for layer in self._layers()}
        for dimension in self.graph.dimensions:
            if dimension.kind in (Kind.MLP_CHANNELS, Kind.EXPERT_CHANNELS):
                for part in dimension.of_role(Role.CONSUME):
                    inside = next((path for path in mixtures if part.module.startswith(f"{path}.")), part.module)
                    exits.setdefault(layer_path(part.module), set()).add(inside)
        for layer, found in exits.items():
            if len(found) != 1:
                raise UnsupportedModelError(f"{layer} has {len(found)} MLPs, so none of its parts can go")
        return [Branch(layer, found.pop()) for layer, found in exits.items()]

    def _whole_layers(self) -> Dimension:
        layers = self._layers()
        owned = tuple(tuple(name for name in self.graph.shapes if layer_path(name) == layer) for layer in layers)
        found = self._dimension(Kind.LAYERS, owned)
        graph = replace(self.graph, dimensions=(found,))
        renumbering = Renumbering.of(graph, {found.name: range(1, len(layers))})
        assert renumbering is not None
        why_not = why_another_model(self.model_type, self.config, renumbering)
        if why_not is not None:
            raise UnsupportedModelError(f"no layer can go: {why_not}")
        return found

    def _blocks(self, stream: ResidualStream, branches: Sequence[Branch], kind: Kind) -> Dimension:
        served = stream.served(branches)
        blocks: list[AttentionBlock | ExpertsBlock] = [*self._attention, *self.experts]
        owned = []
        for branch in branches:
            names = {*served[branch.exit]}
            names |= {name for each in blocks if f"{branch.exit}.".startswith(f"{each.path}.") for name in each.shapes}
            owned.append(tuple(name for name in self.graph.shapes if name in names))
        return self._dimension(kind, tuple(owned))

    def _dimension(self, kind: Kind, owned: tuple[tuple[str, ...], ...]) -> Dimension:
        cached = [0] * len(owned) if kind is Kind.MLP_BLOCKS else map(self.finder.fixed_cache_of, self._attention)
        return Dimension(str(kind), kind, -1, len(owned), (), str(kind), owned=owned, owned_cache=tuple(cached))

    def _why_fixed_attention(self) -> str | None:
        """Why attention blocks stay, or None: those that are left are numbered anew in the cache."""
        kinds = {type(layer).__name__ for layer in DynamicCache(config=self.config).layers}
        if len(kinds) > 1:
            return (
                f"its layers keep caches of several kinds ({', '.join(sorted(kinds))}), by the layer's number; without "
                "some attention blocks the others would get the wrong one"
            )
        for block in self._attention:
            if getattr(self.twin.get_submodule(block.path), "layer_idx", None) is None:
                return f"{block.path} does not know its place in the cache (layer_idx)"
        lengths = _output_lengths(self.twin, self.inputs, [block.path for block in self._attention])
        odd = [path for path, length in lengths.items() if length != 2]
        return f"{odd[0]} returns something else than its output and its weights" if odd else None


def _output_lengths(twin: PreTrainedModel, inputs: Mapping[str, torch.Tensor], paths: Sequence[str]) -> dict[str, int]:
    """How many values each block returns; 0 if it is no tuple."""
    found: dict[str, int] = {}
    handles = [
        twin.get_submodule(path).register_forward_hook(
            lambda _, __, out, path=path: found.update({path: len(out) if isinstance(out, tuple) else 0})
        )
        for path in paths
    ]
    try:
        with torch.no_grad():
            twin(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: found.get(path, 0) for path in paths}
