"""Shape: what of a model's form decides where it runs, read from its parameters and its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from exporters.modelling import needs_modelling_file
from passes.attention import AttentionBlock, AttentionLayout
from passes.errors import LpcError, UnsupportedModelError
from passes.families import FAMILIES
from passes.stock import twin_of
from passes.tasks import AUTO_CLASSES, Task, task_of

LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The form of a model.

    ``model_class`` is the class that ``config.json`` names. ``not_stock``: why the class that transformers' auto
    classes pick for the configuration does not build these parameters, or None if it does. ``needs_file``: whether the
    checkpoint carries a modelling file. ``differs``: the first parameter whose shape is not the same in every layer, or
    None. ``removed``: attention blocks and parameters of which nothing is left.

    ``heads``, ``kv_heads`` and ``head_dims`` have an entry an attention block that is left. ``rows``: the lengths of
    the weights' rows (what a matrix product sums over), distinct, ascending. ``attention_scalar``: the configuration's
    ``query_pre_attn_scalar``, or None.
    """

    model_type: str
    model_class: str
    task: Task
    not_stock: str | None
    needs_file: bool
    differs: str | None
    removed: tuple[str, ...]
    layers: int
    hidden_size: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    head_dims: tuple[int, ...]
    rows: tuple[int, ...]
    attention_scalar: float | None

    @property
    def uniform(self) -> bool:
        """Whether every layer has the same widths, and none of its parts is gone."""
        return self.differs is None and not self.removed

    @property
    def square(self) -> bool:
        """Whether heads x head_dim is the hidden size in every attention block."""
        return all(n * d == self.hidden_size for n, d in zip(self.heads, self.head_dims, strict=True))

    @property
    def head_dim(self) -> int:
        """The size of the largest head, 0 if no attention block is left."""
        return max(self.head_dims, default=0)

    def rows_beyond(self, multiple: int) -> tuple[int, ...]:
        """The row lengths that are not a multiple of ``multiple``."""
        return tuple(row for row in self.rows if row % multiple)

    @classmethod
    def of(cls, model: PreTrainedModel) -> Shape:
        """The shape of a live model. Raises UnsupportedModelError for a class without a task."""
        config, task = model.config, task_of(model)
        blocks, gone = _attention(model)
        empty = tuple(name for name, parameter in model.named_parameters() if not parameter.numel())
        return cls(
            model_type=config.model_type,
            model_class=type(model).__name__,
            task=task,
            not_stock=_why_not_stock(model, task),
            needs_file=needs_modelling_file(model) or bool(config.to_dict().get("per_layer_config")),
            differs=_first_difference(model),
            removed=(*gone, *(name for name in empty if not name.startswith(gone))),
            layers=int(config.num_hidden_layers),
            hidden_size=int(config.hidden_size),
            heads=tuple(block.heads for block in blocks),
            kv_heads=tuple(block.groups for block in blocks),
            head_dims=tuple(block.head_dim for block in blocks),
            rows=tuple(sorted(set(_rows(model)))),
            attention_scalar=getattr(config, "query_pre_attn_scalar", None),
        )


def _layouts(model: PreTrainedModel) -> tuple[AttentionLayout, ...]:
    family = FAMILIES.get(model.config.model_type)
    return family.attentions if family else ()


def _attention(model: PreTrainedModel) -> tuple[list[AttentionBlock], tuple[str, ...]]:
    """The attention blocks that are left, and the paths of those that are not (or not whole)."""
    found, gone = list[AttentionBlock](), list[str]()
    for path, module in model.named_modules():
        for layout in _layouts(model):
            if not layout.matches(path):
                continue
            if any(not parameter.numel() for parameter in module.parameters()):
                gone.append(path)
                continue
            try:
                found.append(layout.read(model, path))
            except UnsupportedModelError:
                gone.append(path)
    return found, tuple(gone)


def _first_difference(model: PreTrainedModel) -> str | None:
    """The first parameter that some layer has in another shape or has not, with all its shapes."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    layers: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        number = LAYER.search(name)
        if number is not None:
            stack, leaf = name[: number.start()], name[number.end() :]
            shapes.setdefault(f"{stack}.*.{leaf}", {})[number[1]] = tuple(parameter.shape)
            layers.setdefault(stack, set()).add(number[1])
    once = {layout.bias_table for layout in _layouts(model) if layout.bias_table}
    for pattern, by_layer in shapes.items():
        missing = len(by_layer) < len(layers[pattern.partition(".*.")[0]])
        if len(set(by_layer.values())) > 1:
            return f"{pattern}: {', '.join(str(list(shape)) for shape in sorted(set(by_layer.values())))}"
        if missing and not any(f".{table}." in pattern for table in once):
            return f"{pattern}: only in layers {', '.join(by_layer)}"
    return None


def _rows(model: PreTrainedModel) -> Iterator[int]:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            yield int(module.weight.shape[0 if isinstance(module, Conv1D) else 1])
        else:
            yield from (parameter.shape[2] for parameter in module.parameters(recurse=False) if parameter.dim() == 3)


def _why_not_stock(model: PreTrainedModel, task: Task) -> str | None:
    """Build the auto class's choice without weights, and compare all parameters' shapes."""
    stock: Any = getattr(transformers, AUTO_CLASSES[task])._model_mapping.get(type(model.config), None)
    if stock is None or not stock.__module__.startswith("transformers."):
        return f"{AUTO_CLASSES[task]} knows no class for a {type(model.config).__name__}"
    if stock.__name__ != type(model).__name__ and not needs_modelling_file(model):
        return f"{type(model).__name__} is a class of its own; {AUTO_CLASSES[task]} takes {stock.__name__}"
    try:
        twin = twin_of(stock, model.config)
    except (LpcError, AttributeError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        return f"{stock.__name__} cannot be built from the configuration: {str(error).strip().splitlines()[0]}"
    theirs = {name: tuple(parameter.shape) for name, parameter in twin.named_parameters()}
    mine = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in sorted({*theirs, *mine}):
        if theirs.get(name) != mine.get(name):
            return f"{stock.__name__} makes {name} {_shown(theirs.get(name))}, the model has {_shown(mine.get(name))}"
    return None


def _shown(shape: tuple[int, ...] | None) -> str:
    return "not at all" if shape is None else str(list(shape))
