"""Renumber: the same model without some of its layers, as its stock class builds it with a lower layer count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from passes.budget import Kept
from passes.errors import UnsupportedModelError
from passes.graph import Dimension, Kind, PruningGraph
from passes.stock import filled, twin_of

LAYER_LISTS = ("layer_types", "no_rope_layers")
"""Configuration entries with an element a layer."""
LAYER_NUMBERS = ("mlp_only_layers",)
"""Configuration entries with the numbers of some layers."""
NUMBERS = ("layer_idx", "layer_id")
"""Attributes that say which layer a module is in: with them the cache is addressed."""

T = TypeVar("T")


@dataclass(frozen=True)
class Renumbering:
    """``stack`` is the path of the list of layers, ``stay`` the dense numbers of those that are left, ascending."""

    stack: str
    stay: Sequence[int]

    @classmethod
    def of(cls, graph: PruningGraph, kept: Kept) -> Renumbering | None:
        """The renumbering that ``kept`` asks for; None if all layers stay."""
        layers = graph.by_name.get(str(Kind.LAYERS))
        removed = {unit for name, unit in graph.removed(kept) if name == str(Kind.LAYERS)}
        if layers is None or not removed:
            return None
        stack = layers.owned[0][0].partition(".0.")[0]
        return cls(stack, tuple(unit for unit in range(layers.size) if unit not in removed))

    def name(self, dense: str) -> str | None:
        """The name that a parameter or module has now; None if it is gone."""
        if not dense.startswith(f"{self.stack}."):
            return dense
        number, dot, rest = dense.removeprefix(f"{self.stack}.").partition(".")
        layer = int(number)
        return f"{self.stack}.{self.stay.index(layer)}{dot}{rest}" if layer in self.stay else None

    def mapping(self, dense: Mapping[str, T]) -> dict[str, T]:
        """The entries of parameters or modules that are left, by the names that they have now."""
        return {new: value for name, value in dense.items() if (new := self.name(name)) is not None}

    def dimension(self, dense: Dimension) -> Dimension:
        """A dimension that is left, with its names of now."""
        parts = [(self.name(part.parameter), self.name(part.source), part) for part in dense.slices]
        slices = tuple(
            replace(part, parameter=name, source=source or "") for name, source, part in parts if name is not None
        )
        if dense.kind is Kind.LAYERS:
            owned = tuple(tuple(self.name(name) or "" for name in dense.owned[unit]) for unit in self.stay)
            cached = tuple(dense.owned_cache[unit] for unit in self.stay)
            return replace(dense, size=len(self.stay), owned=owned, owned_cache=cached)
        if dense.layer not in self.stay or f"layers.{dense.layer}." not in dense.name:
            return replace(dense, slices=slices)
        layer = self.stay.index(dense.layer)
        name = dense.name.replace(f"layers.{dense.layer}.", f"layers.{layer}.", 1)
        return replace(dense, name=name, layer=layer, slices=slices)

    def graph(self, dense: PruningGraph) -> PruningGraph:
        """The graph of the model without the layers."""
        layers = str(Kind.LAYERS)
        gone = sum(size for j, size in enumerate(dense.by_name[layers].owned_cache) if j not in self.stay)
        return replace(
            dense,
            shapes=self.mapping(dense.shapes),
            matmuls=tuple(self.mapping(dict.fromkeys(dense.matmuls))),
            dimensions=tuple(self.dimension(each) for each in self._left(dense)),
            fixed_cache_elements=dense.fixed_cache_elements - gone,
        )

    def kept(self, dense: PruningGraph, kept: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        """The kept units of the dimensions that are left."""
        left = {self.dimension(each).name: kept[each.name] for each in self._left(dense)}
        return {**left, str(Kind.LAYERS): tuple(range(len(self.stay)))}

    def _left(self, dense: PruningGraph) -> Iterator[Dimension]:
        for dimension in dense.dimensions:
            owner = dense.inside.get(dimension.name)
            if owner is None or owner[0] != str(Kind.LAYERS) or owner[1] in self.stay:
                yield dimension


def layer_config(config: PreTrainedConfig, stay: Sequence[int]) -> PreTrainedConfig:
    """The configuration with these layers left, its entries a layer filtered."""
    values, layers = config.to_dict(), int(config.num_hidden_layers)
    for name in LAYER_LISTS:
        entries = values.get(name)
        if isinstance(entries, list) and len(entries) == layers:
            values[name] = [entries[layer] for layer in stay]
    step = values.get("decoder_sparse_step") or 1
    for name in LAYER_NUMBERS:
        if isinstance(values.get(name), list):
            # Qwen-MoE: an MLP also where the layer's number is not a multiple of the step; renumbered, that is said too
            chosen = {layer for layer in range(layers) if layer in values[name] or (layer + 1) % step}
            values[name] = [new for new, layer in enumerate(stay) if layer in chosen]
            values |= {"decoder_sparse_step": 1} if step > 1 else {}
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(stay)
    return type(config).from_dict(values)


def without_layers(
    model: PreTrainedModel, graph: PruningGraph, kept: Mapping[str, Sequence[int]]
) -> tuple[PreTrainedModel, PruningGraph, Mapping[str, Sequence[int]]]:
    """The model without its removed layers, and the graph and the kept units that belong to it.

    The weights are the same tensors. Raises UnsupportedModelError where a layer would become another one by its new
    number.
    """
    renumbering = Renumbering.of(graph, kept)
    if renumbering is None:
        return model, graph, kept
    why_not = why_another_model(type(model), model.config, renumbering)
    if why_not is not None:
        raise UnsupportedModelError(why_not)
    config = layer_config(model.config, renumbering.stay)
    with no_init_weights():
        smaller = cast(Any, type(model))._from_config(config, attn_implementation=model.config._attn_implementation)
    smaller = filled(smaller, renumbering.mapping(model.state_dict()), like=model)
    return smaller, renumbering.graph(graph), renumbering.kept(graph, kept)


def present(graph: PruningGraph, kept: Kept, modules: Sequence[str]) -> dict[str, str]:
    """Those of these modules of the dense model that are in the compact one, with the names that they have there."""
    gone = {parameter.rpartition(".")[0] for parameter in graph.gone(kept)}
    renumbering = Renumbering.of(graph, kept)
    now = {name: name if renumbering is None else renumbering.name(name) for name in modules if name not in gone}
    return {name: new for name, new in now.items() if new is not None}


def why_another_model(
    model_type: type[PreTrainedModel], config: PreTrainedConfig, renumbering: Renumbering
) -> str | None:
    """Why the stock class with fewer layers is not the dense model without the others, or None if it is.

    Two twins are compared: a layer must have the same modules, settings and shapes as the layer that it was.
    """
    dense = twin_of(model_type, config)
    try:
        smaller = twin_of(model_type, layer_config(config, renumbering.stay))
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        return f"the stock class cannot be built with fewer layers: {error}"
    wanted = renumbering.mapping(dict(dense.named_modules()))
    found = dict(smaller.named_modules())
    odd = sorted(wanted.keys() ^ found.keys())
    if odd:
        return f"with fewer layers, the stock class has {'no' if odd[0] in wanted else 'one more'} {odd[0]}"
    inside = (name for name in wanted if name.startswith(f"{renumbering.stack}."))
    return next((each for name in inside if (each := _difference(name, wanted[name], found[name]))), None)


def _difference(name: str, before: nn.Module, after: nn.Module) -> str | None:
    was, is_now = _settings(before), _settings(after)
    for setting in sorted(was.keys() | is_now.keys()):
        if was.get(setting) != is_now.get(setting):
            return f"{name} changes with its number: {setting} is {is_now.get(setting)}, not {was.get(setting)}"
    return None


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module knows beside tensors, and the shapes of those that it has itself."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str | tuple)}
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters(recurse=False)}
    return {name: value for name, value in {**plain, **shapes}.items() if name not in NUMBERS}
