"""Inspect: the dimensions of a model, their units, and what each unit costs. Needs only a ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from exporters.onnx import check_exportable, why_not_builder
from exporters.options import OnnxOptions
from exporters.runtimes import Verdict, compatibility
from lpc.report import untouched
from lpc.source import load_config
from passes.budget import largest_ratio, multiple_of, reachable_counts
from passes.discovery import describe
from passes.errors import LpcError, TokenizerError
from passes.graph import Cost, Dimension, Kind, PruningGraph, Width
from passes.models import model_class, stock_class, task_of, weightless
from passes.options import TraceOptions
from passes.pipeline import plain
from passes.shrink import compact_config
from passes.trace import trace


@dataclass(frozen=True, kw_only=True)
class WidthSummary:
    """The dimensions of one width, which are alike in every layer; ``slices`` are those of the first one.

    ``units`` a dimension, of which ``least`` must stay; ``unit_parameters`` a unit; ``share`` of all parameters.
    ``fixed`` says why no unit can go, or is None.
    """

    width: str
    kind: Kind
    dimensions: int
    units: int
    least: int
    unit_parameters: int
    share: float
    fixed: str | None
    slices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What lpc sees in a model.

    ``prunable`` is the share of all parameters that belongs to units that can go, ``largest_ratio`` what can be removed
    of all, ``least`` what is left then, ``multiple`` what MLP widths are rounded to, ``untouched`` why the other parts
    stay as they are. ``discovered``: how a structure that nobody described was proven, else None.

    Of a smaller model of the stock class: ``runs_on``, who will run its checkpoint, by rule; ``onnx``, the route to its
    graphs (``builder`` or ``torch``), and ``no_onnx``, why there is none.
    """

    model: str
    family: str
    model_class: str
    task: str
    cost: Cost
    multiple: int | None
    prunable: float
    largest_ratio: float
    widths: tuple[WidthSummary, ...]
    untouched: Mapping[str, str]
    least: Cost
    runs_on: tuple[Verdict, ...]
    onnx: str | None
    no_onnx: str | None
    discovered: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values: dict[str, Any] = plain(self)
        return values


def inspect(model: str | Path, options: TraceOptions = TraceOptions()) -> Inspection:
    """Inspect a local folder (its ``config.json`` is enough) or a hub model; allocates no weights.

    Raises MissingFileError, ModelError, or UnsupportedModelError with the reason.
    """
    config = load_config(model)
    found = model_class(config)
    family = describe(config, found)
    graph = trace(config, model_type=found, options=options)
    least = {width.name: reachable_counts(width, None)[0] for width in graph.widths}
    smaller = _smaller(config, found, graph)
    why_not = _why_no_onnx(smaller)
    widths = (*(_summary(graph, width) for width in graph.widths), *(_depth_summary(graph, d) for d in graph.depth))
    return Inspection(
        model=str(model),
        family=graph.family,
        model_class=found.__name__,
        task=str(task_of(found)),
        cost=graph.cost(),
        multiple=multiple_of(graph),
        prunable=_prunable(graph),
        largest_ratio=largest_ratio(graph),
        widths=widths,
        untouched=untouched(graph),
        least=graph.cost(graph.uniform(least)),
        runs_on=tuple(each for each in compatibility(smaller) if each.runs != "unverified"),
        onnx=None if why_not else "torch" if why_not_builder(smaller) else "builder",
        no_onnx=why_not,
        discovered=str(family.proof) if family.proof is not None else None,
    )


def _smaller(config: PreTrainedConfig, kind: type[PreTrainedModel], graph: PruningGraph) -> PreTrainedModel:
    """A model with one unit less of each width that the stock class lets go, or of no width if it cannot be of all at
    once; without weights.
    """
    counts = {width.name: width.stock[-2] for width in graph.widths if len(width.stock) > 1}
    try:
        smaller = compact_config(config, graph, counts)
    except Exception:  # noqa: BLE001 whatever a configuration raises for sizes that it cannot have
        smaller = config
    return weightless(stock_class(kind, smaller), smaller)


def _why_no_onnx(model: PreTrainedModel) -> str | None:
    """Why no ONNX package can be made of a model, or None; its tokenizer is not looked for."""
    try:
        check_exportable(model, None, OnnxOptions())
    except TokenizerError:
        return None
    except LpcError as error:
        return str(error)
    return None


def _prunable(graph: PruningGraph) -> float:
    """The share of the parameters that lies in units that can go; nested ones (channels in experts) count once."""
    free = {width.name for width in graph.widths if width.name not in graph.untouched}
    total = 0.0
    for parameter, owners in graph.slices_of.items():
        entries = math.prod(graph.shapes[parameter])
        inside: dict[int, float] = {}
        for dimension, part in owners:
            if dimension.width in free:
                owned = dimension.size * part.width / graph.shapes[parameter][part.axis]
                lanes = 1 if part.at is None else graph.shapes[parameter][0]
                inside[part.axis] = inside.get(part.axis, 0.0) + owned / lanes
        total += entries * max(inside.values(), default=0.0)
    return total / graph.parameters()


def _summary(graph: PruningGraph, width: Width) -> WidthSummary:
    dimensions = graph.of_width(width.name)
    first = dimensions[0]
    unit = graph.unit_parameters(first)
    owned = sum(graph.unit_parameters(d) * d.size for d in dimensions)
    return WidthSummary(
        width=width.name,
        kind=first.kind,
        dimensions=len(dimensions),
        units=first.size,
        least=reachable_counts(width, None)[0],
        unit_parameters=unit,
        share=owned / graph.parameters(),
        fixed=graph.untouched.get(width.name),
        slices=tuple(_described(part.parameter, part.axis, part.segments, part.at) for part in first.slices),
    )


def _depth_summary(graph: PruningGraph, dimension: Dimension) -> WidthSummary:
    units = range(dimension.size)
    owned = sum(graph.unit_parameters(dimension, unit) for unit in units)
    return WidthSummary(
        width=dimension.name,
        kind=dimension.kind,
        dimensions=1,
        units=dimension.size,
        least=1,
        unit_parameters=graph.unit_parameters(dimension, 0),
        share=owned / graph.parameters(),
        fixed=None,
        slices=tuple(f"{name}, whole" for name in dimension.owned[0]),
    )


def _described(parameter: str, axis: int, segments: tuple[tuple[int, int], ...], at: int | None) -> str:
    place = f"{parameter}[{at}]" if at is not None else parameter
    blocks = " + ".join(f"{block} from {start}" if start else str(block) for start, block in segments)
    return f"{place} axis {axis} × {blocks}"
