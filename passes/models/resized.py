"""Stock transformers classes whose layers have sizes of their own.

This file lies beside the weights of a compact model that no stock class can hold, and needs only torch and
transformers. ``CompactLlamaForCausalLM`` and the like are made of the stock class when they are asked for. The stock
class is built as its configuration says. Then each layer is built again where ``config.per_layer_config`` gives it
values of its own; or, where those cannot say it, the parameters that ``config.compact`` lists get their own shapes, and
attention blocks what they must know of their heads. Where transformers builds such layers by itself, nothing is left to
do, and the model is of the stock class.

Names of transformers that are no promise, each tested by name (test_vendor.py), since nothing of lpc lies beside the
weights: of ``conversion_mapping`` (how a checkpoint's tensors are called in the model)
``get_checkpoint_conversion_mapping`` and ``register_checkpoint_conversion_mapping``; of a model class
``is_custom_code`` (whether those are left out); of a configuration whose layers differ ``is_heterogeneous``,
``per_layer_config``, ``per_layer_attributes`` and ``allow_global_per_layer_attribute_access``.
"""

from __future__ import annotations

import functools
import inspect
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import conversion_mapping

PREFIX = "Compact"
"""How the name of a resized class begins; the stock class's name follows."""

FILE = "modeling_compact.py"
"""What this file is called beside the weights."""

CONFIG = "config."
"""How an attribute begins that a module reads of its configuration while it runs."""


def has_own_sizes(config: Any) -> bool:
    """Whether a configuration gives layers sizes of their own, in ``per_layer_config`` or in ``compact``."""
    return getattr(config, "compact", None) is not None or getattr(config, "is_heterogeneous", False)


def rebuild_layers(model: nn.Module, config: Any) -> bool:
    """Build each layer from its own configuration; whether any layer was not as that says.

    The new layers read the rest of ``config`` live, such as the attention implementation.
    """
    stacks = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    layers = next(stack for stack in stacks if len(stack) == config.num_hidden_layers)
    changed = False
    for index, layer in enumerate(layers):
        own = config.per_layer_config[index]
        numbered = len(inspect.signature(type(layer)).parameters) > 1
        built = type(layer)(own, index) if numbered else type(layer)(own)
        if _shapes(built) == _shapes(layer):
            continue
        values = {name: getattr(own, name) for name in config.per_layer_attributes}
        for module in built.modules():
            if getattr(module, "config", None) is own:
                vars(module)["config"] = OwnConfig(config, values)
        layers[index] = built
        changed = True
    return changed


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


class OwnConfig:
    """A model's configuration as one of its modules sees it: with some values of its own, all else live."""

    def __init__(self, model: Any, own: dict[str, Any]) -> None:
        self.model, self.own = model, own

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("model", "own"):
            raise AttributeError(name)
        known = self.model.attribute_map.get(name, name)
        return self.own[known] if known in self.own else getattr(self.model, name)


def resize(model: nn.Module, compact: dict[str, Any]) -> None:
    """Give a dense model the sizes of a compact one; the resized tensors are uninitialised.

    ``compact["shapes"]``: shape a tensor. ``compact["attributes"]``: values a module; those called ``config.NAME``
    are what it reads of its configuration. ``compact["heads"]``: a module whose arguments have an entry a head of the
    dense model: their names, that number, and the heads that are left. ``compact["absent"]``: what the modules of
    blocks that are gone do instead (see ``Absent``).
    """
    for name, shape in compact["shapes"].items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf)
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        setattr(module, leaf, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        if leaf == "weight":
            _describe(module, shape)
    for path, values in compact["attributes"].items():
        module = model.get_submodule(path)
        read = {name.removeprefix(CONFIG): value for name, value in values.items() if name.startswith(CONFIG)}
        if read:
            vars(module)["config"] = OwnConfig(module.config, read)
        for name in values.keys() - {f"{CONFIG}{entry}" for entry in read}:
            setattr(module, name, values[name])
    for path, heads in compact["heads"].items():
        model.get_submodule(path).register_forward_pre_hook(_HeadsOf(heads), with_kwargs=True)
    for path, does in compact.get("absent", {}).items():
        model.set_submodule(path, Absent(model.get_submodule(path), does))


def _describe(module: Any, shape: list[int]) -> None:
    if hasattr(module, "in_features"):
        module.out_features, module.in_features = shape
    elif hasattr(module, "nf"):
        module.nx, module.nf = shape
    elif hasattr(module, "num_embeddings"):
        module.num_embeddings, module.embedding_dim = shape


class Absent(nn.Module):
    """Stands for a module of a block that is gone. It has the module's parameters, all of zero elements.

    It ``does`` one of three things: a ``norm`` (any module before or behind the block) passes its input on; an ``mlp``
    adds nothing to the residual stream, that is, it returns zeros, or the residual where that is among its arguments;
    ``attention`` likewise, beside no attention weights, and keeps no cache.
    """

    def __init__(self, gone: nn.Module, does: str) -> None:
        super().__init__()
        self.does = does
        self.names = list(inspect.signature(gone.forward).parameters)
        for name, parameter in gone.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, child in gone.named_children():
            self.add_module(name, Absent(child, "norm"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns instead; takes whatever the module takes."""
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        entered = given[self.names[0]]
        if self.does == "norm":
            return entered
        added = given["residual"] if "residual" in given else torch.zeros_like(entered)
        return (added, None) if self.does == "attention" else added


class _HeadsOf:
    """Takes the entries of the heads that are left, [batch, heads, ...] or [batch * heads, ...]."""

    def __init__(self, heads: dict[str, Any]) -> None:
        self.names, self.dense, self.kept = heads["arguments"], heads["dense"], heads["kept"]

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        places = inspect.signature(module.forward).parameters
        first = (self._of_heads(name, value) for name, value in zip(places, args, strict=False))
        named = {name: self._of_heads(name, value) for name, value in kwargs.items()}
        return (*first, *args[len(places) :]), named

    def _of_heads(self, name: str, value: Any) -> Any:
        return self._take(value) if name in self.names and isinstance(value, torch.Tensor) else value

    def _take(self, value: torch.Tensor) -> torch.Tensor:
        kept = torch.tensor(self.kept, device=value.device)
        if value.dim() == 4:
            return value.index_select(1, kept) if value.shape[1] == self.dense else value
        rows = value.reshape(-1, self.dense, *value.shape[1:]).index_select(1, kept)
        return rows.flatten(0, 1)


def compact_class(stock: type) -> type:
    """The subclass of a stock transformers class that has the sizes in its configuration; the same one each time.

    Its models are of the stock class itself where that already has them.
    """
    return _made_of(stock)


@functools.cache
def _made_of(stock: type) -> type:
    name = f"{PREFIX}{stock.__name__}"

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        config.architectures = [stock.__name__]  # so that the models inside are stock, also where lpc is imported
        layered = getattr(config, "is_heterogeneous", False)
        if layered:
            config.allow_global_per_layer_attribute_access = True
        stock.__init__(self, config, *args, **kwargs)  # type: ignore[misc]
        changed = layered and rebuild_layers(self, config)
        if changed:
            self.init_weights()
        if getattr(config, "compact", None) is not None:
            resize(self, _seen_from(self, config.compact))
            changed = True
        if changed:
            config.architectures = [name]
        else:
            vars(config).pop("auto_map", None)
            self.__class__ = stock

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        stock.save_pretrained(self, save_directory, *args, **kwargs)  # type: ignore[attr-defined]
        if "auto_map" in vars(self.config):
            shutil.copyfile(__file__, Path(save_directory) / FILE)

    conversions = conversion_mapping.get_checkpoint_conversion_mapping(stock.__name__)
    if conversions is not None:
        conversion_mapping.register_checkpoint_conversion_mapping(name, conversions, overwrite=True)
    members: dict[str, Any] = {
        "__init__": build,
        "__module__": __name__,
        "save_pretrained": save_pretrained,
        "stock_class": stock,
        # Custom code would be loaded without the conversions between a checkpoint's names and the model's.
        "is_custom_code": classmethod(lambda cls: stock.is_custom_code()),  # type: ignore[attr-defined]
    }
    return type(name, (stock,), members)


def _seen_from(model: Any, compact: dict[str, Any]) -> dict[str, Any]:
    """The entries of a model with a head, as they are called in the model without: ``model.`` is left out."""
    prefix = f"{model.base_model_prefix}."
    if hasattr(model, model.base_model_prefix) or not any(name.startswith(prefix) for name in compact["shapes"]):
        return compact
    return {
        kind: {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}
        for kind, entries in compact.items()
    }


def __getattr__(name: str) -> Any:
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if not isinstance(stock, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return compact_class(stock)
