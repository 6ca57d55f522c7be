"""The proof of a family: a small random model that is cut computes what the masked model computes."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from passes.errors import UnsupportedModelError
from passes.families import Proof
from passes.graph import Dimension, Kind, PruningGraph
from passes.models import (
    Parity,
    Probe,
    Response,
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
        _every_width_counts(model, free, probe)
        graphs = (free, stock) if any(len(width.stock) > 1 for width in free.widths) else (free,)
        for graph, kept in _different((each, kept) for each in graphs for kept in _plans(each)):
            _prove_plan(model, graph, kept, probe, checks)
    return Proof(worst=checks.worst, checks=tuple(checks.names)), free


def _plans(graph: PruningGraph) -> Iterator[Kept]:
    """The least of everything, then a random choice in between."""
    generator = random.Random(0)
    for middle in (False, True):
        counts = {w.name: w.counts[(len(w.counts) - 1) // 2 if middle else 0] for w in graph.widths}
        yield {d.name: sorted(generator.sample(range(d.size), counts[d.width])) for d in graph.dimensions}


def _different(plans: Iterable[tuple[PruningGraph, Kept]]) -> Iterator[tuple[PruningGraph, Kept]]:
    """The plans that are not the same as one before: where the stock class holds what custom code does, all are."""
    seen = list[Kept]()
    for graph, kept in plans:
        if kept not in seen:
            seen.append(kept)
            yield graph, kept


def _every_width_counts(model: PreTrainedModel, graph: PruningGraph, probe: Probe) -> None:
    """Raise UnsupportedModelError if half of a width's first dimension changes nothing: cuts would prove none.

    Of the channels of experts any one will do, since a router may send no token of the probe to the first expert.
    """
    dense = respond(model, probe)
    by_width: dict[str, list[Dimension]] = {}
    for dimension in graph.dimensions:
        if dimension.size > 1 and dimension.kind is not Kind.EXPERTS:
            by_width.setdefault(f"{dimension.width} {dimension.slices[0].parameter.count('cross')}", []).append(
                dimension
            )
    for dimensions in by_width.values():
        some = dimensions if dimensions[0].kind is Kind.EXPERT_CHANNELS else dimensions[:1]
        changes = (_change(model, graph, probe, dimension, dense) for dimension in some)
        if not any(change > FELT for change in changes):
            raise UnsupportedModelError(f"masks: half of {dimensions[0].name} changes the outputs by less than {FELT}")


def _change(model: PreTrainedModel, graph: PruningGraph, probe: Probe, dimension: Dimension, dense: Response) -> float:
    """How much the outputs change without the upper half of a dimension."""
    with masked(model, graph, _masks(graph, {dimension.name: [*range(dimension.size // 2)]})):
        return respond(model, probe).compare("change", dense, TOLERANCE).value


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
    if rest.shape[1] != ids.shape[1] - PROMPT:
        raise UnsupportedModelError(
            f"with a cache: {ids.shape[1] - PROMPT} tokens behind {PROMPT} cached ones give {rest.shape[1]} outputs"
        )
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
