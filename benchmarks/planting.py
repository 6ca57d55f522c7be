"""How a fault is planted in a pass: in the model that it returns, in what it does on its way, or in the files it wrote.

Each function gives a ``Plant``; ``benchmarks/mutations.py`` has the table of them and runs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import passes.shrink.cut
import passes.tuning.merge
from exporters.hf import SavePass
from passes.graph import Dimension, Kind, PruningGraph, Role, layer_path
from passes.pipeline import Pass, PassResult, Program, RunContext
from passes.shrink import ShrinkPass
from passes.tuning import AttachPass, MergePass

PASSES: dict[str, type[Pass]] = {"attach": AttachPass, "merge": MergePass, "shrink": ShrinkPass, "save": SavePass}


@dataclass(frozen=True)
class Site:
    """Where faults are planted: parameters and dimensions of a layer in the middle of the model."""

    graph: PruningGraph
    mlp: Dimension
    heads: Dimension

    @classmethod
    def of(cls, graph: PruningGraph) -> Site:
        """The middle layer."""
        mlps, heads = (graph.of_kind(kind) for kind in (Kind.MLP_CHANNELS, Kind.KV_GROUPS))
        return cls(graph, mlps[len(mlps) // 2], heads[len(heads) // 2])

    @property
    def up(self) -> str:
        """What produces the MLP's channels."""
        return self.mlp.of_role(Role.PRODUCE)[-1].parameter

    @property
    def down(self) -> str:
        """What consumes them."""
        return self.mlp.of_role(Role.CONSUME)[0].parameter

    @property
    def key(self) -> str:
        """The key projection."""
        return self.heads.of_role(Role.PRODUCE)[1].parameter

    @property
    def bias(self) -> str | None:
        """The bias of the query projection, if there is one."""
        query = f"{self.heads.of_role(Role.PRODUCE)[0].module}.bias"
        return query if query in self.graph.shapes else None

    @property
    def norm(self) -> str:
        """A tensor that nothing is cut from: a norm of the layer."""
        layer = f"{layer_path(self.up)}."
        cut = self.graph.slices_of.keys()
        return next(n for n, s in self.graph.shapes.items() if n.startswith(layer) and len(s) == 1 and n not in cut)


Plant = Callable[[Site], Any]
"""Plants a fault until the context that it returns is left."""


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute has another value inside the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def afterwards(kind: type[Pass], change: Callable[[Pass, Program, Program], None]) -> Any:
    """``change(pass, before, after)`` runs when a pass has done its work, before it is verified."""
    original = kind.call

    def call(self: Pass, program: Program, run: RunContext) -> PassResult:
        result = original(self, program, run)
        with torch.no_grad():
            change(self, program, result.program)
        return result

    return patched(kind, "call", call)


def swap(tensor: torch.Tensor, axis: int = 0) -> None:
    """Exchange two neighbouring rows or columns."""
    rows = tensor.data.movedim(axis, 0)
    rows[[3, 4]] = rows[[4, 3]].clone()


def nudge(tensor: torch.Tensor) -> None:
    """Move one element to the next number that its dtype has."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    tensor.data.flatten()[5:6].view(bits).add_(1)


def in_model(stage: str, change: Callable[[PreTrainedModel, Site, Program], None]) -> Plant:
    """A fault in the model that a pass returns."""
    return lambda site: afterwards(PASSES[stage], lambda _, before, after: change(after.model, site, before))


def in_layer(attribute: str, wrong: Callable[[Any, Callable[..., Any]], Callable[..., Any]]) -> Plant:
    """A fault in what peft does with the adapter of one layer."""

    def plant(site: Site) -> Any:
        original, chosen = getattr(LoraLinear, attribute), site.up.removesuffix(".weight")

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            this = getattr(self, "planted", None) == chosen
            return (wrong(self, original) if this else original.__get__(self))(*args, **kwargs)

        return patched(LoraLinear, attribute, method)

    return plant


def in_cut(parameter: Callable[[Site], str | None], wrong: Callable[[torch.Tensor, Site], torch.Tensor]) -> Plant:
    """A fault in a tensor before it is cut."""

    def plant(site: Site) -> Any:
        original = passes.shrink.cut.cut_tensor

        def cut(tensor: torch.Tensor, parts: Any, kept: Any) -> torch.Tensor:
            this = any(part.parameter == parameter(site) for _, part in parts)
            return original(wrong(tensor, site) if this else tensor, parts, kept)

        return patched(passes.shrink.cut, "cut_tensor", cut)

    return plant


def in_merged(change: Callable[[torch.Tensor], None]) -> Plant:
    """A fault in the sum of one layer."""

    def plant(site: Site) -> Any:
        original = passes.tuning.merge._merge_layer

        def merge_layer(name: str, layer: Any, adapter: str) -> None:
            original(name, layer, adapter)
            if name == site.up:
                change(layer.get_base_layer().weight)

        return patched(passes.tuning.merge, "_merge_layer", merge_layer)

    return plant


def in_folder(change: Callable[[Path, Site], None]) -> Plant:
    """A fault in the checkpoint on disk."""
    return lambda site: afterwards(SavePass, lambda done, _, __: change(cast(SavePass, done).folder, site))


def in_file(name: Callable[[Site], str], change: Callable[[torch.Tensor], None]) -> Plant:
    """A fault in one tensor of the checkpoint on disk."""

    def rewrite(folder: Path, site: Site) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors[name(site)])
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return in_folder(rewrite)


def in_config(change: Callable[[dict[str, Any], Site], Mapping[str, Any]]) -> Plant:
    """A fault in the configuration on disk."""

    def rewrite(folder: Path, site: Site) -> None:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = json.dumps({**values, **change(values, site)})
        (folder / "config.json").write_text(text, encoding="utf-8")

    return in_folder(rewrite)


def other_kept(kind: str) -> Plant:
    """One unit of one layer is cut in place of its neighbour, in all its tensors."""

    def plant(site: Site) -> Any:
        original, name = passes.shrink.cut.cut_tensor, getattr(site, kind).name

        def cut(tensor: torch.Tensor, parts: Any, kept: Any) -> torch.Tensor:
            units, size = set(kept[name]), getattr(site, kind).size
            out = next(unit for unit in range(size) if unit in units and (unit + 1) % size not in units)
            return original(tensor, parts, {**kept, name: tuple(sorted(units - {out} | {(out + 1) % size}))})

        return patched(passes.shrink.cut, "cut_tensor", cut)

    return plant


def wrong_graph(site: Site) -> Any:
    """The graph itself takes one layer's rows for another's: masked and cut model follow the same graph."""
    other = next(d for d in site.graph.of_kind(Kind.MLP_CHANNELS) if d.name != site.mlp.name)
    theirs = Site(site.graph, other, site.heads).up
    names = {site.up: theirs, theirs: site.up}

    def exchanged(dimension: Dimension) -> Dimension:
        return replace(
            dimension, slices=tuple(replace(s, parameter=names.get(s.parameter, s.parameter)) for s in dimension.slices)
        )

    graph = replace(site.graph, dimensions=tuple(exchanged(each) for each in site.graph.dimensions))
    original = ShrinkPass.__call__
    return patched(
        ShrinkPass, "__call__", lambda self, program, run: original(self, replace(program, graph=graph), run)
    )
