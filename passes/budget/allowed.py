"""Which counts each dimension may keep under a target: rounding, floors, protected layers, frozen dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from passes.budget.multiples import reachable_counts
from passes.errors import OptionError
from passes.graph import Dimension, PruningGraph, layer_prefix
from passes.options import Target


def allowed_counts(target: Target, graph: PruningGraph) -> dict[str, tuple[int, ...]]:
    """The allowed counts a dimension, ascending; the last is the dense one.

    Raises OptionError for protected layers or frozen dimensions that the model does not have.
    """
    _check_frozen(target, graph)
    protected = _protected(target, graph)
    whole = {d.name for d in graph.dimensions if _stays(d, target.freeze, protected)}
    allowed = {}
    for width in graph.widths:
        floor = target.min_channels if width.kind.is_fine else target.min_heads if width.kind.is_heads else 1
        counts = tuple(c for c in reachable_counts(width, target.multiple) if c >= min(floor, width.size))
        for dimension in graph.of_width(width.name):
            allowed[dimension.name] = (width.size,) if dimension.name in whole else counts
    return allowed


def _stays(dimension: Dimension, frozen: Sequence[str], protected: Sequence[str]) -> bool:
    if {dimension.name, dimension.width, str(dimension.kind)} & set(frozen):
        return True
    return any(dimension.name.startswith(f"{prefix}.") for prefix in protected)


def _protected(target: Target, graph: PruningGraph) -> list[str]:
    """The protected layers' prefixes, numbered from the front. Raises OptionError for what names nothing."""
    prefixes = sorted({match for d in graph.dimensions if (match := layer_prefix(d.name))}, key=_layer_number)
    found = []
    for name in target.protect:
        stack, _, number = name.rpartition(".")
        same = [prefix for prefix in prefixes if prefix.rpartition(".")[0] == stack]
        if not number.lstrip("-").isdigit() or not -len(same) <= int(number) < len(same):
            raise OptionError(f"protect {name!r} names no layer of this model: its layers are {_range(prefixes)}")
        found.append(same[int(number)])
    return found


def _check_frozen(target: Target, graph: PruningGraph) -> None:
    known = {name for d in graph.dimensions for name in (d.name, d.width, str(d.kind))}
    for name in target.freeze:
        if name not in known:
            widths = ", ".join(sorted({d.width for d in graph.dimensions}))
            raise OptionError(f"freeze {name!r} names no dimension of this model: name one, or a width: {widths}")


def _layer_number(prefix: str) -> tuple[str, int]:
    stack, _, number = prefix.rpartition(".")
    return stack, int(number)


def _range(prefixes: Sequence[str]) -> str:
    return f"{prefixes[0]} to {prefixes[-1]}" if prefixes else "none"


def removable_units(target: Target, graph: PruningGraph) -> dict[str, tuple[int, ...]]:
    """The layers or blocks that may go, by the dimension's name: none that is protected or frozen."""
    protected = {int(prefix.rpartition(".")[2]) for prefix in _protected(target, graph)}
    found = {}
    for dimension in graph.depth:
        frozen = {dimension.name, str(dimension.kind)} & set(target.freeze)
        found[dimension.name] = tuple(unit for unit in range(dimension.size) if unit not in protected and not frozen)
    return found
