"""Bytes of each stage: copies of the weights as docs/memory.md has them, and what is computed with them.

What a stage holds besides weights is the largest of what it holds at a time: activations of a batch, statistics, states
of the optimizer. The interpreter and its libraries are not counted here.
"""

from __future__ import annotations

from lpc.estimation.sizes import Sizes
from lpc.estimation.work import Load
from passes.criteria import Needs, criterion_named
from passes.models import HOST_TOKENS

FP32 = 4
STATISTICS = 8 * 2**30
"""What the statistics of a ranking take at most; the rest is ranked in portions."""
DOUBLE_COLUMNS = 2048
"""Up to so many inputs products of fp32 are kept in fp64."""
LOGIT_BYTES, CHUNK_LOGITS = 28.0, 1 << 23
"""Of each logit that is there in a training step, and how many there are at a time: the model's and the teacher's, and
what their loss and its gradient make of them in fp32."""


def adapter(sizes: Sizes, load: Load) -> int:
    """Of A and B."""
    return FP32 * load.rank * sizes.lora_elements


def frozen_activations(sizes: Sizes) -> float:
    """What a backward pass through frozen layers keeps of a token: what norms read (fp32), q, k, v, attention's output,
    gate, its activation, up.
    """
    norms = FP32 * 2 * sizes.layers * sizes.hidden
    return norms + sizes.itemsize * (2 * sizes.queries + 2 * sizes.keys + 3 * sizes.channels)


def trained_activations(sizes: Sizes, load: Load) -> float:
    """What a training step keeps of a token: the same, and what adapters read and pass on.

    In half precision each adapter reads an fp32 copy of its own; in fp32 they share what they read, and what the output
    projection reads is kept already.
    """
    shared = FP32 * (2 * sizes.layers * sizes.hidden + sizes.channels)
    read = FP32 * sizes.inputs if sizes.itemsize < FP32 else shared
    return frozen_activations(sizes) + read + FP32 * load.rank * sizes.adapters


def distilled(sizes: Sizes, load: Load) -> float:
    """What distilling hidden states keeps of a token: the teacher's, the student's, and their difference in fp32."""
    asked = load.tune.distill
    if asked is None or not asked.hidden_weight:
        return 0.0
    return float(sizes.layers * sizes.hidden * (2 * sizes.itemsize + FP32))


def stages(sizes: Sizes, load: Load, kept: float) -> dict[str, float]:
    """Bytes by stage, of a model of which the share ``kept`` of the parameters stays."""
    weights, own = float(sizes.weight_bytes), float(adapter(sizes, load))
    solved = float(sizes.solved * sizes.itemsize) if load.compensated else 0.0
    logits = load.batch * load.context * sizes.vocabulary * sizes.itemsize
    tokens = load.batch * load.context
    found = {"load": weights, "measure": weights + logits}
    adapted = weights + own
    if load.tune.one_shot or not load.tune.steps:
        found["rank"] = adapted + _ranking(sizes, load)
    if load.compensated:
        found["compensate"] = adapted + 2 * solved + _compensating(sizes, load)
    if load.tune.steps:
        states = 3 * own  # gradients and Adam's two moments
        run = max(load.context, min(tokens, HOST_TOKENS)) if load.on_cpu else tokens
        kept_of_pass = run * (trained_activations(sizes, load) + distilled(sizes, load))
        chunk = LOGIT_BYTES * min(run * sizes.vocabulary, CHUNK_LOGITS)
        compact = kept * sizes.adapted * sizes.itemsize if load.tune.small else 0.0
        found["tune"] = adapted + 2 * solved + compact + states + kept_of_pass + chunk
    found["merge"] = weights + own + solved + _largest(sizes) * 3 * 8
    found["shrink"] = weights * (1 + kept) + solved
    found["save"] = 2 * kept * weights + solved
    found["export"] = kept * (weights + 2 * FP32 * sizes.parameters) + solved
    return found


def _ranking(sizes: Sizes, load: Load) -> float:
    """Statistics, and a pass over one batch (or a piece of one)."""
    entry = criterion_named(load.tune.criterion)
    if entry.needs is Needs.WEIGHTS:
        return 0.0
    tokens = load.batch * load.context
    tokens = min(tokens, HOST_TOKENS) if load.on_cpu and entry.additive else tokens
    held = sum(a * a * _kept(sizes, a) + b * b * _kept(sizes, b) for a, b in sizes.consumers) if entry.held else 0
    logits = 2.0 * tokens * sizes.vocabulary * sizes.itemsize
    kept = frozen_activations(sizes) if entry.needs is not Needs.ACTIVATIONS else 0.0
    return min(float(held), STATISTICS) + tokens * kept + logits


def _kept(sizes: Sizes, width: int) -> int:
    """Bytes an element of the products of activations so wide."""
    return 8 if sizes.itemsize >= FP32 and width <= DOUBLE_COLUMNS else FP32


def _compensating(sizes: Sizes, load: Load) -> float:
    """Hidden states of both sides, what one layer's projections are to come to, and what these read."""
    layer = sizes.consumers[-2:]
    token = 2.0 * sizes.hidden * sizes.itemsize
    token += sum(FP32 * written + (read + written) * sizes.itemsize for read, written in layer)
    normal = max((read * (read + written) * _kept(sizes, read) * 3 for read, written in sizes.consumers), default=0)
    return load.sampled * token + normal


def _largest(sizes: Sizes) -> int:
    return max((read * written for read, written in sizes.consumers), default=0)
