"""Which projections a compensation solves, and solving them one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from passes.algebra import NormalEquations, Solution
from passes.compensation.layer_by_layer import LayerByLayer, streams_through
from passes.compensation.streams import ModelInputs, Sides, TokenRows, real_rows
from passes.errors import ModelError
from passes.graph import Masks, PruningGraph, Role
from passes.models import module_at, parameter_at
from passes.pipeline import Progress, Solved

VERIFIED_ROWS = 256
"""Rows on which a new weight is tried before the next projection is looked at."""


@dataclass(frozen=True)
class Site:
    """A consuming projection with removed inputs: its module, the weight's input axis, and the inputs that stay."""

    module: str
    axis: int
    kept: torch.Tensor

    @property
    def weight(self) -> str:
        """Name of the weight."""
        return f"{self.module}.weight"

    def moved(self, weight: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """The weight with ``step`` [kept inputs, outputs] added, rounded to its dtype."""
        new = weight.clone()
        view = new if self.axis == 0 else new.T  # [inputs, outputs]
        view[self.kept] = (view[self.kept].double() + step).to(weight.dtype)
        return new

    def step(self, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        """What was really added, after rounding: [kept inputs, outputs], fp64."""
        difference = new.double() - old.double()
        return (difference if self.axis == 0 else difference.T)[self.kept]


def find_sites(
    sides: Sides, graph: PruningGraph, masks: Masks, batch: ModelInputs
) -> tuple[tuple[Site, ...], dict[str, str]]:
    """The projections to be solved, in the order in which they run, and why others are left as they are."""
    reading: dict[str, list[int]] = {}
    axes: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for dimension in graph.dimensions:
        gone = (~masks[dimension.name]).nonzero().flatten().tolist()
        for part in dimension.of_role(Role.CONSUME) if gone else ():
            module = module_at(sides.model, part.module, unwrapped=True)
            if len(graph.shapes[part.parameter]) == 3:
                skipped[part.parameter] = "stacked experts are left as they are"
            elif not isinstance(module, nn.Linear | Conv1D):
                skipped[part.parameter] = f"a {type(module).__name__} is not known to be a linear layer"
            else:
                reading.setdefault(part.module, []).extend(part.indices(gone))
                axes[part.module] = part.axis
    order, odd = _order(sides, batch, list(reading))
    skipped |= {f"{name}.weight": why for name, why in odd.items()}
    sites = []
    for name in order:
        weight = parameter_at(sides.model, f"{name}.weight")
        keep = torch.ones(weight.shape[axes[name]], dtype=torch.bool)
        keep[reading[name]] = False
        sites.append(Site(name, axes[name], keep.nonzero().flatten().to(weight.device)))
    return tuple(sites), skipped


def _order(sides: Sides, batch: ModelInputs, modules: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The modules in the order of one forward pass, and why some cannot be solved: their rows are not the tokens."""
    seen: list[tuple[str, int]] = []
    handles = []
    for name in modules:

        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            seen.append((name, inputs[0].shape[:-1].numel()))

        handles.append(module_at(sides.model, name).register_forward_pre_hook(hook))
    try:
        sides.model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    times = [name for name, _ in seen]
    odd = {name: f"it runs {times.count(name)} times in a forward pass" for name in modules if times.count(name) != 1}
    for name, rows in seen:
        real = real_rows(sides.model, batch, name)
        if real is not None and len(real) != rows:
            odd[name] = f"it reads {rows} rows where the batch has {len(real)} tokens"
    return [name for name in times if name not in odd], odd


class Resolver:
    """Solves sites in order of depth; each sees the model with all that came before compensated."""

    def __init__(self, sides: Sides, batches: Sequence[ModelInputs], sites: Sequence[Site], *, residual: bool) -> None:
        self._sides, self._sites, names = sides, sites, [site.module for site in sites]
        self._streams = streams_through(sides, batches, names, residual=residual) if sites else None
        self.layer_by_layer = isinstance(self._streams, LayerByLayer)
        self.solved: list[Solved] = []
        self.tokens = 0
        self.difference = 0.0
        """The largest difference between what a new weight was to give on the first rows, and what it gave."""

    @property
    def residual(self) -> frozenset[str]:
        """The projections whose target made good what the residual stream lacked."""
        return self._streams.residual if isinstance(self._streams, LayerByLayer) else frozenset()

    def run(self, ridge: float, progress: Progress) -> None:
        """Solve all of them, and write the new parameters into the model."""
        for number, site in enumerate(self._sites, 1):
            equations, first = self._collect(site)
            try:
                self.solved.append(self._write(site, equations, equations.solve(ridge), first))
            except ModelError as error:
                raise ModelError(f"{site.module} cannot be compensated: {error}") from error
            self.tokens = max(self.tokens, equations.rows)
            progress("compensate", number, len(self._sites))

    def outputs(self, batches: Sequence[ModelInputs]) -> Iterator[Mapping[str, Any]]:
        """What the model gives now; ``batches`` are those that were solved on, with labels if these are wanted."""
        return self._streams.outputs(batches) if self._streams else (self._sides.model(**batch) for batch in batches)

    def _collect(self, site: Site) -> tuple[NormalEquations, TokenRows]:
        """The sums over all batches, and the rows of the first batch."""
        assert self._streams is not None
        equations, first = None, None
        for rows in self._streams.rows(site.module):
            first = first or rows
            equations = equations or self._equations(site, rows)
            equations.add(rows.inputs[:, site.kept], rows.missing, rows.target)
        assert equations is not None
        assert first is not None
        return equations, first

    def _equations(self, site: Site, rows: TokenRows) -> NormalEquations:
        bias = getattr(module_at(self._sides.model, site.module, unwrapped=True), "bias", None)
        return NormalEquations(intercept=bias is not None)

    def _write(self, site: Site, equations: NormalEquations, solution: Solution, first: TokenRows) -> Solved:
        """Put the new weight in place, unless it is no better than the old one once it is rounded."""
        new: dict[str, torch.Tensor] = {}
        weight = parameter_at(self._sides.model, site.weight)
        new[site.weight] = site.moved(weight.data, solution.step)
        stored = Solution(site.step(new[site.weight], weight.data), None, solution.ridge)
        if solution.shift is not None:
            bias = parameter_at(self._sides.model, f"{site.module}.bias")
            # The best shift beside the step as it was rounded.
            new[f"{site.module}.bias"] = (bias.double() + equations.shift(stored.step)).to(bias.dtype)
            stored = Solution(stored.step, new[f"{site.module}.bias"].double() - bias.double(), solution.ridge)
        before, after = equations.error(), equations.error(stored)
        if not after < before:
            return Solved(projection=site.module, before=before, after=before, ridge=solution.ridge, changed=False)
        for name, tensor in new.items():
            parameter = parameter_at(self._sides.model, name)
            self._sides.originals.setdefault(name, parameter.data)
            parameter.data = tensor
        self._verify(site, first, stored)
        return Solved(projection=site.module, before=before, after=after, ridge=solution.ridge, changed=True)

    def _verify(self, site: Site, first: TokenRows, stored: Solution) -> None:
        """The projection gives on some rows what the equations say; relative to the size of its products."""
        read, gave = first.inputs[:VERIFIED_ROWS], first.pruned[:VERIFIED_ROWS].double()
        inputs = read[:, site.kept].double()
        expected = gave + inputs @ stored.step
        expected = expected if stored.shift is None else expected + stored.shift
        actual = module_at(self._sides.model, site.module)(read).double()
        size = float((gave.abs() + inputs.abs() @ stored.step.abs()).max())
        difference = float((actual - expected).abs().max()) / max(size, torch.finfo(torch.float32).tiny)
        self.difference = max(self.difference, difference)
