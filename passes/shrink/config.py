"""Per-layer widths, said in the configuration: transformers' own ``per_layer_config``.

Format: transformers ``docs/source/en/heterogeneous_configurations.md``. The global values stay the dense ones, which
the validators of configurations read; a layer states only what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import transformers
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, PreTrainedModel

from passes.errors import PlanError, UnsupportedModelError
from passes.graph import Dimension, Kind, PruningGraph
from passes.models import AUTO_CLASSES, FILE, PREFIX, compact_class, task_of, twin_of, vendor


def uniform_counts(graph: PruningGraph, kept: Mapping[str, Sequence[int]]) -> dict[str, int] | None:
    """The kept counts a width, or None if the dimensions of a width differ in theirs; absent blocks have none."""
    found: dict[str, set[int]] = {}
    for dimension in graph.dimensions:
        if kept[dimension.name] and not dimension.kind.is_depth:
            found.setdefault(dimension.width, set()).add(len(kept[dimension.name]))
    return {name: counts.pop() for name, counts in found.items()} if all(len(c) == 1 for c in found.values()) else None


def check_buildable(graph: PruningGraph, kept: Mapping[str, Sequence[int]]) -> None:
    """Raise PlanError unless what lies in one tensor keeps as much everywhere.

    The KV heads of a layer are read by as many query heads each, and the experts of a stack have as many channels.
    """
    together: dict[str, list[Dimension]] = {}
    for dimension in graph.dimensions:
        if dimension.kind in (Kind.QUERY_HEADS, Kind.EXPERT_CHANNELS):
            together.setdefault(dimension.slices[-1].parameter, []).append(dimension)
    for parameter, dimensions in together.items():
        counts = {len(kept[dimension.name]) for dimension in dimensions}
        if len(counts) > 1:
            raise PlanError(
                f"{dimensions[0].name} to {dimensions[-1].name} keep {sorted(counts)} units, but they lie in one "
                f"tensor, {parameter}, so they must keep the same number"
            )


def per_layer_config(
    model: PreTrainedModel, graph: PruningGraph, kept: Mapping[str, Sequence[int]]
) -> PreTrainedConfig | None:
    """The configuration whose ``per_layer_config`` says these widths, or None where it cannot say them.

    The class of the model is asked: its layers, built from that configuration on the meta device, must have exactly the
    shapes that the graph predicts.
    """
    counts = {name: len(units) for name, units in kept.items()}
    layers = _layer_values(model.config, graph, counts)
    if layers is None:
        return None
    values = {
        **model.config.to_dict(),
        **graph.fixed_entries,
        **naming(type(model), model.config),
        "per_layer_config": layers,
        "allow_global_per_layer_attribute_access": True,
    }
    try:
        config = type(model.config).from_dict(values)
        twin = twin_of(cast(Any, compact_class(type(model))), config)
    except (ValueError, RuntimeError, ZeroDivisionError):
        return None
    shapes = {name: tuple(parameter.shape) for name, parameter in twin.named_parameters()}
    return config if shapes == {name: graph.shape(name, counts) for name in graph.shapes} else None


def naming(stock: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, Any]:
    """The entries of a configuration that name the resized class and, for transformers' own classes, its file."""
    named = {"architectures": [f"{PREFIX}{stock.__name__}"]}
    if not hasattr(transformers, stock.__name__):
        return named
    classes = {AUTO_CLASSES[task_of(stock)]: stock.__name__}
    headless = vendor.names_by_model_type("MODEL_MAPPING").get(config.model_type)
    if isinstance(headless, str):
        classes["AutoModel"] = headless
    file = FILE.removesuffix(".py")
    return {**named, "auto_map": {auto: f"{file}.{PREFIX}{name}" for auto, name in classes.items()}}


def _layer_values(
    config: PreTrainedConfig, graph: PruningGraph, counts: Mapping[str, int]
) -> dict[int, dict[str, int]] | None:
    """The entries of the configuration, a layer, or None if a width that differs has no entry."""
    if config.is_encoder_decoder:
        return None  # two stacks of layers, and one numbering
    layers: dict[int, dict[str, int]] = {}
    for dimension in graph.dimensions:
        if dimension.kind.is_depth:
            continue
        entries, count = graph.width(dimension.width).entries, counts[dimension.name]
        if count == 0 or (count != dimension.size and not entries):
            return None
        for entry, factor in entries.items():
            layers.setdefault(dimension.layer, {})[config.attribute_map.get(entry, entry)] = factor * count
    return layers


_LLAMA_ONLY = ("attention_bias", "mlp_bias")


def compact_config(config: PreTrainedConfig, graph: PruningGraph, counts: Mapping[str, int]) -> PreTrainedConfig:
    """The configuration of the compact model, from the kept counts a width (absent: all).

    Raises UnsupportedModelError or ValueError when the configuration's own class refuses the sizes.
    """
    sizes: dict[str, int] = dict(graph.fixed_entries)
    for width in graph.widths:
        for entry, factor in width.entries.items():
            sizes[config.attribute_map.get(entry, entry)] = factor * counts.get(width.name, width.size)
    values: dict[str, Any] = {**config.to_dict(), **sizes, **larger_epsilons(config, graph, counts)}
    if type(config) is LlamaConfig and values["hidden_size"] % values["num_attention_heads"]:
        return _as_mistral(values)
    return type(config).from_dict(values)


def larger_epsilons(config: PreTrainedConfig, graph: PruningGraph, counts: Mapping[str, int]) -> dict[str, float]:
    """The epsilons that go with the kept counts a width, by entry; ``passes.shrink.rescale`` says why."""
    return {
        width.epsilon: getattr(config, width.epsilon) * width.size / counts[width.name]
        for width in graph.widths
        if width.epsilon is not None and counts.get(width.name, width.size) != width.size
    }


def _as_mistral(values: dict[str, Any]) -> MistralConfig:
    set_anyway = [name for name in _LLAMA_ONLY if values.get(name)]
    if set_anyway:
        raise UnsupportedModelError(
            f"{values['num_attention_heads']} heads do not divide the hidden size {values['hidden_size']}, which stock "
            f"Llama refuses, and {set_anyway[0]}=True has no place in stock Mistral"
        )
    dropped = {*_LLAMA_ONLY, "pretraining_tp", "sliding_window", "model_type", "transformers_version"}
    kept = {name: value for name, value in values.items() if name not in dropped}
    named = [name.replace("Llama", "Mistral") for name in kept.pop("architectures", None) or ["LlamaForCausalLM"]]
    return MistralConfig(**kept, sliding_window=None, architectures=named)
