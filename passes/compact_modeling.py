"""Stock transformers classes whose layers have sizes of their own.

This file lies beside the weights of a compact model that no stock class can hold, and needs only torch and
transformers. The stock class is built as its configuration says; then the parameters that ``config.compact`` lists get
their own shapes, and attention blocks what they must know of their heads.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

PREFIX = "Compact"
"""How the name of a resized class begins; the stock class's name follows."""


def resize(model: nn.Module, compact: dict[str, Any]) -> None:
    """Give a dense model the sizes of a compact one; the resized parameters are uninitialised.

    ``compact["shapes"]``: shape a parameter. ``compact["attributes"]``: values a module. ``compact["heads"]``: a module
    whose arguments have an entry a head of the dense model: their names, that number, and the heads that are left.
    ``compact["absent"]``: what the modules of blocks that are gone do instead (see ``Absent``).
    """
    for name, shape in compact["shapes"].items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf)
        setattr(module, leaf, nn.Parameter(torch.empty(shape, dtype=old.dtype, device=old.device)))
        if leaf == "weight":
            _describe(module, shape)
    for path, values in compact["attributes"].items():
        for name, value in values.items():
            setattr(model.get_submodule(path), name, value)
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
        chosen = {name: self._take(kwargs[name]) for name in self.names if isinstance(kwargs.get(name), torch.Tensor)}
        return args, {**kwargs, **chosen}

    def _take(self, value: torch.Tensor) -> torch.Tensor:
        kept = torch.tensor(self.kept, device=value.device)
        if value.dim() == 4:
            return value.index_select(1, kept) if value.shape[1] == self.dense else value
        rows = value.reshape(-1, self.dense, *value.shape[1:]).index_select(1, kept)
        return rows.flatten(0, 1)


def compact_class(stock: type) -> type:
    """The subclass of a stock transformers class that has the sizes in ``config.compact``."""

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)  # type: ignore[misc]
        resize(self, config.compact)

    return type(f"{PREFIX}{stock.__name__}", (stock,), {"__init__": build, "__module__": __name__})
