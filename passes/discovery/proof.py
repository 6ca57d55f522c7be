"""The proof of a family: a small random model that is cut computes what the masked model computes."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from passes.errors import UnsupportedModelError
from passes.families import Proof
from passes.graph import Kind, PruningGraph
from passes.models import (
    Parity,
    Probe,
    Task,
    bit_difference,
    compact_class,
    count_parameters,
    has_own_sizes,
    masked,
    relative_difference,
    respond,
    rounding_tolerance,
    task_of,
    vendor,
)
from passes.options import TraceOptions
from passes.shrink import build_compact
from passes.trace import trace

TOLERANCE = 5 * rounding_tolerance(torch.float32)
"""Random weights round worse than trained ones; what is cut in the wrong place differs a hundredfold at least."""

FELT = 1e-3
"""A unit whose removal changes less than so much proves nothing."""

PROMPT = 5
"""Tokens that are read before the cached ones of the check with a cache."""

Kept = Mapping[str, Sequence[int]]


@dataclass
class _Checks:
    """What was checked so far, with the worst difference."""

    worst: float = 0.0
    names: dict[str, None] = field(default_factory=dict)

    def add(self, name: str, value: float, what: str) -> None:
        """Note a check. Raises UnsupportedModelError if its difference is no rounding."""
        if not value <= TOLERANCE:
            raise UnsupportedModelError(f"{name}: {what} differs by {value:.1e}, and rounding is below {TOLERANCE:.0e}")
        self.worst = max(self.worst, value)
        self.names[name] = None


def prove(model: PreTrainedModel) -> tuple[Proof, PruningGraph]:
    """Prove the family that the model's type has now on this small random fp32 model, which stays as it is.

    All dimensions are cut together, to the least that there is and to the middle of their counts, by custom code and as
    the stock class holds them; which units stay is drawn. One dimension a width must be felt when it is masked. The
    outputs must be those of the masked model, with padding and with a cache, and the same once the smaller model is
    saved and loaded. Returns the proof, and the graph with custom code.
    Raises UnsupportedModelError naming the first check that fails.
    """
    checks, kind = _Checks(), type(model)
    free = trace(model.config, torch.float32, model_type=kind, options=TraceOptions(custom_code=True))
    stock = replace(free, widths=tuple(replace(width, counts=width.stock) for width in free.widths))
    if not free.widths:
        raise UnsupportedModelError(
            f"nothing of {kind.__name__} can go: {'; '.join(free.untouched.values()) or 'no MLP'}"
        )
    if free.parameters() != count_parameters(model):
        raise UnsupportedModelError(
            f"parameters: the trace accounts for {free.parameters():,} of {count_parameters(model):,}"
        )
    with torch.no_grad():
        probe = Probe.of(model)
        dense = respond(model, probe)
        dense.check_finite("float32")
        _every_dimension_counts(model, free, probe)
        for graph in (free, stock) if any(len(width.stock) > 1 for width in free.widths) else (free,):
            for kept in _plans(graph):
                _prove_plan(model, graph, kept, probe, checks)
    return Proof(worst=checks.worst, checks=tuple(checks.names)), free


def _plans(graph: PruningGraph) -> Iterator[Kept]:
    """The least of everything, then a random choice in between."""
    generator = random.Random(0)
    for middle in (False, True):
        counts = {w.name: w.counts[(len(w.counts) - 1) // 2 if middle else 0] for w in graph.widths}
        yield {d.name: sorted(generator.sample(range(d.size), counts[d.width])) for d in graph.dimensions}


def _every_dimension_counts(model: PreTrainedModel, graph: PruningGraph, probe: Probe) -> None:
    """Raise UnsupportedModelError if half of a width's first dimension changes nothing: cuts would prove none."""
    dense = respond(model, probe)
    first: dict[str, Any] = {}
    for dimension in graph.dimensions:
        if dimension.size > 1 and dimension.kind is not Kind.EXPERTS:
            first.setdefault(f"{dimension.width} {dimension.slices[0].parameter.count('cross')}", dimension)
    for dimension in first.values():
        half = [*range(dimension.size // 2)]
        with masked(model, graph, _masks(graph, {dimension.name: half})):
            change = respond(model, probe).compare("change", dense, TOLERANCE).value
        if not change > FELT:
            raise UnsupportedModelError(f"masks: half of {dimension.name} changes the outputs by {change:.0e} only")


def _masks(graph: PruningGraph, kept: Kept) -> dict[str, torch.Tensor]:
    masks = {}
    for dimension in graph.dimensions:
        masks[dimension.name] = torch.zeros(dimension.size, dtype=torch.bool)
        masks[dimension.name][list(kept.get(dimension.name, range(dimension.size)))] = True
    return masks


def _prove_plan(model: PreTrainedModel, graph: PruningGraph, kept: Kept, probe: Probe, checks: _Checks) -> None:
    compact = build_compact(model, graph, kept)
    wanted_parameters = graph.parameters({name: len(units) for name, units in kept.items()})
    if count_parameters(compact) != wanted_parameters:
        raise UnsupportedModelError(
            f"parameters: {count_parameters(compact):,} are left, and the closed form says {wanted_parameters:,}"
        )
    with masked(model, graph, _masks(graph, kept)):
        wanted = respond(model, probe)
        steps = _cached(model, probe)
    found: Parity = respond(compact, probe).compare("masked against cut", wanted, TOLERANCE)
    checks.add("masked against cut", found.value, "the cut model's output")
    if steps is not None:
        for mine, other in zip(_cached(compact, probe) or (), steps, strict=True):
            difference = relative_difference(mine, other)
            checks.add("with a cache", difference, "the cut model's output after cached tokens")
    _reload(compact, checks)


def _cached(model: PreTrainedModel, probe: Probe) -> tuple[torch.Tensor, ...] | None:
    """The logits of a prompt, and of what follows with the cache of it; None for a model that keeps none."""
    if task_of(model) is not Task.CAUSAL_LM:
        return None
    inputs = dict(probe.inputs)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    first = {name: value[:, :PROMPT] for name, value in inputs.items()}
    then = {name: value[:, PROMPT:] for name, value in inputs.items() if name != "attention_mask"}
    start = model(**first, use_cache=True)
    past = vendor.cache_of(start)
    if past is None:
        return None
    rest = model(**then, attention_mask=mask, **vendor.with_cache(model, past), use_cache=True).logits
    real = mask.bool()
    assert rest.shape[1] == ids.shape[1] - PROMPT
    return start.logits[real[:, :PROMPT]], rest[real[:, PROMPT:]]


def _reload(compact: PreTrainedModel, checks: _Checks) -> None:
    """Save the smaller model and load it again: every tensor must be the same, bit for bit."""
    with tempfile.TemporaryDirectory(prefix="lpc-proof-") as folder:
        compact.save_pretrained(folder)
        config: PreTrainedConfig = type(compact.config).from_pretrained(folder)
        stock = getattr(type(compact), "stock_class", type(compact))
        kind = compact_class(stock) if has_own_sizes(config) else stock
        again = cast(Any, kind).from_pretrained(Path(folder), dtype=torch.float32, local_files_only=True)
    mine, theirs = dict(compact.named_parameters()), dict(again.named_parameters())
    odd = sorted(mine.keys() ^ theirs.keys())
    odd += [name for name in mine if name in theirs and bit_difference(theirs[name], mine[name]) is not None]
    if odd:
        raise UnsupportedModelError(f"reload: {odd[0]} is not what was saved")
    checks.add("reload", 0.0, "nothing")
