"""Bytes of each stage: copies of the weights as docs/memory.md has them, and what is computed with them.

What a stage holds besides weights is the largest of what it holds at a time: activations of a batch, statistics, states
of the optimizer. The interpreter and its libraries are not counted here.
"""

from __future__ import annotations

from lpc.estimation.sizes import Sizes
from lpc.estimation.work import Load
from lpc.generation import AT_ONCE
from passes.algebra import work_bytes
from passes.criteria import HOST_WORK_BYTES, Needs, criterion_named
from passes.models import HOST_TOKENS

FP32 = 4
STATISTICS = 8 * 2**30
"""What the statistics of a ranking take at most; the rest is ranked in portions."""
DOUBLE_COLUMNS = 2048
"""Up to so many inputs products of fp32 are kept in fp64."""
LOGIT_BYTES, CHUNK_LOGITS = 28.0, 1 << 23
"""Of each logit that is there in a training step, and how many there are at a time: the model's and the teacher's, and
what their loss and its gradient make of them in fp32."""
FREED = 42.0
"""Of each of these, on a processor, what the C library keeps of blocks that were freed: as measured on two models."""
DRAWN = 24.0
"""Of each logit that a token of the model's own text is drawn from: shares, their sums, and what is barred."""


def adapter(sizes: Sizes, load: Load) -> int:
    """Of A and B."""
    return FP32 * load.rank * sizes.lora_elements


def frozen_activations(sizes: Sizes, left: float = 1.0) -> float:
    """What a backward pass through frozen layers keeps of a token: what norms read (fp32), q, k, v, attention's output,
    gate, its activation, up. ``left``: the share of heads and channels that stays.
    """
    norms = FP32 * 2 * sizes.layers * sizes.hidden
    return norms + left * sizes.itemsize * (2 * sizes.queries + 2 * sizes.keys + 3 * sizes.channels)


def trained_activations(sizes: Sizes, load: Load, left: float = 1.0) -> float:
    """What a training step keeps of a token: the same, and what adapters read and pass on.

    In half precision each adapter reads an fp32 copy of its own; in fp32 they share what they read, and what the output
    projection reads is kept already.
    """
    gone = (1 - left) * (sizes.queries + sizes.channels)
    shared = FP32 * (2 * sizes.layers * sizes.hidden + left * sizes.channels)
    read = FP32 * (sizes.inputs - gone) if sizes.itemsize < FP32 else shared
    return frozen_activations(sizes, left) + read + FP32 * load.rank * sizes.adapters


def distilled(sizes: Sizes, load: Load) -> float:
    """What distilling hidden states keeps of a token: the teacher's, the student's, and their difference in fp32."""
    asked = load.tune.distill
    if asked is None or not asked.hidden_weight:
        return 0.0
    return float(sizes.layers * sizes.hidden * (2 * sizes.itemsize + FP32))


def passing(sizes: Sizes) -> float:
    """What is there of a token while it goes through a layer and nothing is kept."""
    width = (2 * sizes.queries + 2 * sizes.keys + 3 * sizes.channels) / max(1, sizes.layers)
    return sizes.itemsize * width + 2 * (FP32 + sizes.itemsize) * sizes.hidden


def measured_logits(sizes: Sizes, tokens: int) -> float:
    """Those of a chunk, as they are and in fp32, with what their loss makes of them."""
    wide = FP32 if sizes.itemsize < FP32 else 0
    return float(sizes.itemsize + wide + FP32) * min(tokens * sizes.vocabulary, CHUNK_LOGITS)


def stages(sizes: Sizes, load: Load, kept: float, left: float) -> dict[str, float]:
    """Bytes by stage, of a model of which the share ``kept`` of the parameters stays, ``left`` of its layers'."""
    worn = bool(load.tune.steps) or criterion_named(load.tune.criterion).needs is Needs.ADAPTER
    weights, own = float(sizes.weight_bytes), float(adapter(sizes, load)) if worn else 0.0
    solved = float(sizes.solved * sizes.itemsize) if load.compensated else 0.0
    tokens = load.batch * load.context
    adapted = weights + own
    asked = tokens * passing(sizes) + measured_logits(sizes, tokens)
    after = adapted + (2 * solved if load.tune.steps else solved)
    found = {"load": weights}
    if load.own:
        found["generate"] = weights + _writing(sizes, load)
    found["measure"] = max(weights, after if load.tune.one_shot else adapted) + asked
    if load.tune.one_shot or not load.tune.steps:
        found["rank"] = adapted + _ranking(sizes, load)
    if load.compensated:
        found["compensate"] = adapted + solved + max(solved, _compensating(sizes, load, left))
    if load.tune.steps:
        found["tune"] = after + _tuning(sizes, load, own, left)
    found["merge"] = weights + own + solved + _largest(sizes) * 3 * 8
    found["shrink"] = weights * (1 + kept) + solved
    found["save"] = 2 * kept * weights + solved
    found["export"] = kept * (weights + 2 * FP32 * sizes.parameters) + solved
    freed = FREED * min(tokens * sizes.vocabulary, CHUNK_LOGITS) if load.on_cpu else 0.0
    return {name: size if name == "load" else size + freed for name, size in found.items()}


def _writing(sizes: Sizes, load: Load) -> float:
    """Keys and values of all texts that are written at once, one layer's twice, and the logits of a token of each."""
    rows = min(load.own, AT_ONCE * load.batch)
    cache = 2.0 * sizes.keys * (1 + 1 / max(1, sizes.layers)) * sizes.itemsize * load.context
    return rows * (cache + DRAWN * sizes.vocabulary)


def _tuning(sizes: Sizes, load: Load, own: float, left: float) -> float:
    """Beside dense weights and adapter: the compact model, gradients and Adam's two moments, a pass over a batch."""
    tokens, small = load.batch * load.context, load.tune.small and load.tune.one_shot
    run = max(load.context, min(tokens, HOST_TOKENS)) if load.on_cpu else tokens
    share = left if small else 1.0
    compact = share * (sizes.adapted * sizes.itemsize + own) if small else 0.0
    kept = run * (trained_activations(sizes, load, share) + distilled(sizes, load))
    return compact + 3 * share * own + kept + LOGIT_BYTES * min(run * sizes.vocabulary, CHUNK_LOGITS)


def _ranking(sizes: Sizes, load: Load) -> float:
    """Statistics, and a pass over one batch (or a piece of one), or else what is worked out from the statistics."""
    entry = criterion_named(load.tune.criterion)
    if entry.needs is Needs.WEIGHTS:
        return 0.0
    tokens = load.batch * load.context
    tokens = min(tokens, HOST_TOKENS) if load.on_cpu and entry.additive else tokens
    held = sum(a * a * _kept(sizes, a) + b * b * _kept(sizes, b) for a, b in sizes.consumers) if entry.held else 0
    logits = 2.0 * tokens * sizes.vocabulary * sizes.itemsize
    logits += 2.0 * FP32 * min(tokens * sizes.vocabulary, CHUNK_LOGITS)
    kept = frozen_activations(sizes) if entry.needs is not Needs.ACTIVATIONS else passing(sizes)
    return min(float(held), STATISTICS) + max(tokens * kept + logits, _eliminating(sizes) if entry.held else 0.0)


def _eliminating(sizes: Sizes) -> float:
    """What is worked out from the statistics of one projection, and of others with it up to a bound."""
    works = [work_bytes(*shape) for shape in sizes.consumers]
    return float(max(max(works, default=0), min(sum(works), HOST_WORK_BYTES)))


def _kept(sizes: Sizes, width: int) -> int:
    """Bytes an element of the products of activations so wide."""
    return 8 if sizes.itemsize >= FP32 and width <= DOUBLE_COLUMNS else FP32


def _compensating(sizes: Sizes, load: Load, left: float) -> float:
    """Hidden states of both sides; beside them what one layer's projections are to come to, what these read and its
    normal equations, or else a batch of the guard's.
    """
    layer, tokens = sizes.consumers[-2:], load.batch * load.context
    token = sum(FP32 * written + (read + written) * sizes.itemsize for read, written in layer)
    normal = max((_solving(left * read, written) for read, written in sizes.consumers), default=0.0)
    guard = tokens * sizes.vocabulary * sizes.itemsize + measured_logits(sizes, tokens) + tokens * passing(sizes)
    hidden = 2.0 * sizes.hidden * sizes.itemsize
    return load.sampled * hidden + max(load.sampled * token + normal, guard)


def _solving(read: float, written: int) -> float:
    """Of the sums of one projection: in fp32, and in fp64 with a factor, the step and its products."""
    return read**2 * (FP32 + 2 * 8) + read * written * (FP32 + 3 * 8)


def _largest(sizes: Sizes) -> int:
    return max((read * written for read, written in sizes.consumers), default=0)
