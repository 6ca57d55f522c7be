"""Shape: what of a model's form decides where it runs, read from its parameters and its configuration."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from exporters.hf import needs_modelling_file
from passes.errors import LpcError, UnsupportedModelError
from passes.families import AttentionBlock, Family, family_named
from passes.models import AUTO_CLASSES, Task, reason, task_of, twin_of, vendor

LAYER = re.compile(r"\.(\d+)\.")

UNDESCRIBED = Family(attentions=())

Shapes = dict[str, tuple[int, ...]]
"""The shape of each parameter, by name."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The form of a model.

    ``model_class`` is the class that ``config.json`` names. ``not_stock``: why the class that transformers' auto
    classes pick for the configuration does not build these parameters, or None if it does. ``needs_file``: whether the
    checkpoint carries a modelling file. ``differs``: the first parameter whose shape is not the same in every layer, or
    None. ``removed``: attention blocks and parameters of which nothing is left.

    ``layers`` counts those of all stacks. ``hidden_size`` is 0 where neither an attention block nor the configuration
    says it. ``heads``, ``kv_heads`` and ``head_dims`` have an entry an attention block that is left. ``rows``: the
    lengths of the weights' rows (what a matrix product sums over), distinct, ascending. ``attention_scalar``: the
    configuration's ``query_pre_attn_scalar``, or None.
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
    def family(self) -> Family:
        """What lpc knows of the model type: nothing, where it is not described."""
        return family_named(self.model_type) or UNDESCRIBED

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
        stock, why_not = _stock_shapes(model, task)
        blocks, gone = _attention(model)
        empty = tuple(name for name, parameter in model.named_parameters() if not parameter.numel())
        return cls(
            model_type=config.model_type,
            model_class=type(model).__name__,
            task=task,
            not_stock=why_not,
            needs_file=needs_modelling_file(model) or bool(config.to_dict().get("per_layer_config")),
            differs=_first_difference(model, stock),
            removed=(*gone, *(name for name in empty if not name.startswith(gone))),
            layers=len({(n[: at.start()], at[1]) for n in _shapes(model) if (at := LAYER.search(n))}),
            hidden_size=_hidden_size(model, blocks),
            heads=tuple(block.heads for block in blocks),
            kv_heads=tuple(block.groups for block in blocks),
            head_dims=tuple(block.head_dim for block in blocks),
            rows=tuple(sorted(set(_rows(model)))),
            attention_scalar=getattr(config, "query_pre_attn_scalar", None),
        )


def _attention(model: PreTrainedModel) -> tuple[list[AttentionBlock], tuple[str, ...]]:
    """The attention blocks that are left, and the paths of those that are not (or not whole)."""
    found, gone = list[AttentionBlock](), list[str]()
    layouts = (family_named(model.config.model_type) or UNDESCRIBED).attentions
    for path, module in model.named_modules():
        for layout in layouts:
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


def _hidden_size(model: PreTrainedModel, blocks: list[AttentionBlock]) -> int:
    """What the first attention block's output projection is wide, else the configuration's entry."""
    for block in blocks:
        output = block.group_slices()[-1]
        return block.shapes[output.parameter][1 - output.axis]
    return int(getattr(model.config, "hidden_size", 0))


def _first_difference(model: PreTrainedModel, stock: Shapes | None) -> str | None:
    """The first parameter that some layer has in another shape, or has not although the stock class has it there."""
    stock = stock or {}
    mine = _shapes(model)
    by_layer: dict[str, dict[str, tuple[int, ...] | None]] = {}
    for name in {**mine, **stock}:
        number = LAYER.search(name)
        if number is not None:
            pattern = f"{name[: number.start()]}.*.{name[number.end() :]}"
            by_layer.setdefault(pattern, {})[number[1]] = mine.get(name)
    for pattern, found in by_layer.items():
        sizes = {str(list(shape)) for shape in found.values() if shape is not None}
        if len(sizes) > 1:
            return f"{pattern}: {', '.join(sorted(sizes))}"
        if sizes and None in found.values():
            return (
                f"{pattern}: only in layers {', '.join(layer for layer, shape in found.items() if shape is not None)}"
            )
    return None


def _rows(model: PreTrainedModel) -> Iterator[int]:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            yield int(module.weight.shape[0 if isinstance(module, Conv1D) else 1])
        else:
            yield from (parameter.shape[2] for parameter in module.parameters(recurse=False) if parameter.dim() == 3)


def _stock_shapes(model: PreTrainedModel, task: Task) -> tuple[Shapes | None, str | None]:
    """The parameters' shapes in the class that the auto class picks, built without weights, or why it has none."""
    auto = AUTO_CLASSES[task]
    named = model.config.architectures or [None]
    several = vendor.classes_for(auto, model.config)
    stock = next((each for each in several if each.__name__ == named[0]), several[0] if several else None)
    if stock is None or not stock.__module__.startswith("transformers."):
        return None, f"{auto} knows no class for a {type(model.config).__name__}"
    config = copy.deepcopy(model.config)
    config.architectures = [stock.__name__]  # or lpc, where it is imported, would make a compact class of it
    try:
        shapes = _shapes(twin_of(stock, config))
    except (LpcError, AttributeError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        return None, f"{stock.__name__} cannot be built from the configuration: {reason(error)}"
    if stock.__name__ != type(model).__name__ and not needs_modelling_file(model):
        return shapes, f"{type(model).__name__} is a class of its own; {auto} takes {stock.__name__}"
    mine = _shapes(model)
    for name in sorted({*shapes, *mine}):
        if shapes.get(name) != mine.get(name):
            theirs, ours = _shown(shapes.get(name)), _shown(mine.get(name))
            return shapes, f"{stock.__name__} makes {name} {theirs}, the model has {ours}"
    return shapes, None


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _shown(shape: tuple[int, ...] | None) -> str:
    return "not at all" if shape is None else str(list(shape))
