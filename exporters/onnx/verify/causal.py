"""Does a decoder's graph compute what torch computes? Prefill, decode, both paddings, chunks, one token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from transformers import DynamicCache, PreTrainedModel

from exporters.onnx.options import past_names, present_names
from exporters.onnx.pieces import Pieces
from exporters.onnx.session import OnnxModel
from exporters.onnx.torch_caches import cache_tensors, fill_cache
from exporters.onnx.verify.parity import require_parity
from exporters.onnx.verify.probes import padded, probe_ids, probe_length
from exporters.onnx.windows import window_of
from passes.models import Parity, vendor

Answer = dict[str, torch.Tensor]
"""``logits`` (batch, n, vocabulary) and the ``present`` caches after the step."""


@dataclass(frozen=True, kw_only=True)
class ProbeStep:
    """One call: ``ids`` (batch, n), ``mask`` (batch, past + n), ``past`` key and value of each layer or nothing."""

    ids: torch.Tensor
    mask: torch.Tensor
    past: tuple[torch.Tensor, ...] = ()

    @property
    def positions(self) -> torch.Tensor:
        """Position of each new token, counted over real tokens; padding gets 0."""
        return (self.mask.cumsum(-1) - 1).clamp_min(0)[:, -self.ids.shape[1] :]


def onnx_answer(graph: OnnxModel, step: ProbeStep) -> Answer:
    """What the graph computes for the step; without a past, caches of length zero go in."""
    feeds = {"input_ids": step.ids, "attention_mask": step.mask}
    if "position_ids" in graph.shapes:
        feeds["position_ids"] = step.positions
    names = [each.name for each in graph.inputs if each.name.startswith("past_key_values")]
    if step.past:
        return graph(feeds | dict(zip(names, step.past, strict=True)))
    return graph(feeds | graph.empty(names, len(step.ids)))


@torch.no_grad()
def torch_answer(model: PreTrainedModel, step: ProbeStep, *, positions: bool) -> Answer:
    """What torch computes for the step."""
    more = {"position_ids": step.positions} if positions else {}
    more |= vendor.with_cache(model, fill_cache(step.past) if step.past else DynamicCache())
    output = model(input_ids=step.ids, attention_mask=step.mask, use_cache=True, **more)
    present = cache_tensors(vendor.cache_of(output))
    names = present_names(len(present) // 2)
    return {"logits": output.logits.float()} | dict(zip(names, (each.float() for each in present), strict=True))


def verify_onnx(model: PreTrainedModel, graph: OnnxModel, tolerance: float) -> tuple[Parity, ...]:
    """Compare the graph with an fp32 ``model`` in eval mode on CPU; return the parities, all within ``tolerance``.

    Raises ``PostconditionError`` naming the case, the first layer whose cache differs, and the number.
    """
    positions = _counts_positions(graph)
    parities = []
    for case, step in probe_steps(model, positions=positions):
        fed = replace(step, past=_as_cached(graph, step.past, step.mask[:, : -step.ids.shape[1]]))
        actual, expected = onnx_answer(graph, fed), torch_answer(model, step, positions=positions)
        parities.append(_compare(graph, f"onnx {case}", step, actual, expected, tolerance))
    if window_of(model) is not None:
        parities.append(_verify_behind_padding(model, graph, tolerance))
    return (*parities, _verify_chunks(model, graph, tolerance))


def probe_steps(model: PreTrainedModel, *, positions: bool) -> Iterator[tuple[str, ProbeStep]]:
    """Named probes on random token ids; caches are torch's own."""
    ids = probe_ids(model, 3, probe_length(model))
    ones = torch.ones_like(ids)
    left = padded(ids, left=True)
    yield "prefill", ProbeStep(ids=ids[:2], mask=ones[:2])
    yield "single token, empty past", ProbeStep(ids=ids[:1, :1], mask=ones[:1, :1])
    yield "decode", _decode(model, ids, ones, positions)
    yield "left padding", ProbeStep(ids=ids, mask=left)
    yield "left padding, decode", _decode(model, ids, left, positions)
    yield "right padding", ProbeStep(ids=ids, mask=padded(ids, left=False))


def padded_step(model: PreTrainedModel) -> ProbeStep:
    """Rows of random token ids on an empty cache: a whole one, two padded on the left, two on the right."""
    ids = probe_ids(model, 5, probe_length(model))
    left, right = padded(ids[:3], left=True), padded(ids[2:], left=False)[1:]
    return ProbeStep(ids=ids, mask=torch.cat((left, right)))


def verify_pieces(graph: Pieces, step: ProbeStep, expected: Answer, tolerance: float) -> tuple[Parity, ...]:
    """Compare a graph in pieces with what torch answers to ``padded_step``; return the parities.

    The last token of the rows in which it is a real one is a decode step: of its past torch has the cache already.
    Raises ``PostconditionError`` as ``verify_onnx`` does.
    """
    last = step.mask[:, -1].bool()
    caches = {name: each[last] for name, each in expected.items() if name != "logits"}
    mask = step.mask[last]
    past = _as_cached(graph, tuple(each[:, :, :-1] for each in caches.values()), mask[:, :-1])
    decode = ProbeStep(ids=step.ids[last, -1:], mask=mask, past=past)
    whole, decoded = graph([_named(each) for each in (step, decode)])
    wanted = {"logits": expected["logits"][last, -1:]} | caches
    return (
        _compare(graph, "onnx prefill, padded on both sides", step, whole, expected, tolerance),
        _compare(graph, "onnx decode, left padding", decode, decoded, wanted, tolerance),
    )


def _named(step: ProbeStep) -> dict[str, torch.Tensor]:
    feeds = {"input_ids": step.ids, "attention_mask": step.mask, "position_ids": step.positions}
    return feeds | dict(zip(past_names(len(step.past) // 2), step.past, strict=True))


def _decode(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, positions: bool) -> ProbeStep:
    """The last token of ``ids``, with torch's cache of the others."""
    before = torch_answer(model, ProbeStep(ids=ids[:, :-1], mask=mask[:, :-1]), positions=positions)
    return ProbeStep(ids=ids[:, -1:], mask=mask, past=tuple(before.values())[1:])


def _verify_chunks(model: PreTrainedModel, graph: OnnxModel, tolerance: float) -> Parity:
    """The graph fed in three chunks with its own cache, the first of length zero, against one torch pass."""
    ids = probe_ids(model, 1 if graph.compact else 2, probe_length(model))
    ones, cut = torch.ones_like(ids), ids.shape[1] // 2
    past: tuple[torch.Tensor, ...] = ()
    pieces = []
    for start, end in ((0, cut), (cut, ids.shape[1] - 1), (ids.shape[1] - 1, ids.shape[1])):
        answer = onnx_answer(graph, ProbeStep(ids=ids[:, start:end], mask=ones[:, :end], past=past))
        past = tuple(answer.values())[1:]
        pieces.append(answer["logits"])
    whole = ProbeStep(ids=ids, mask=ones)
    expected = torch_answer(model, whole, positions=_counts_positions(graph))
    actual = dict(zip(expected, (torch.cat(pieces, dim=1), *past), strict=True))
    return _compare(graph, "onnx chunked prefill from an empty past", whole, actual, expected, tolerance)


def _verify_behind_padding(model: PreTrainedModel, graph: OnnxModel, tolerance: float) -> Parity:
    """A batch of two prompts, the second padded on the right, gone on behind the padding, against the second alone."""
    ids = probe_ids(model, 2, probe_length(model))
    mask, gap = torch.ones_like(ids), slice(ids.shape[1] // 2, ids.shape[1] - 1)
    mask[1, gap] = 0
    before = onnx_answer(graph, ProbeStep(ids=ids[:, :-1], mask=mask[:, :-1]))
    step = ProbeStep(ids=ids[:, -1:], mask=mask, past=tuple(before.values())[1:])
    alone = ids[1:, mask[1].bool()]
    whole = ProbeStep(ids=alone, mask=torch.ones_like(alone))
    expected = torch_answer(model, whole, positions=_counts_positions(graph))["logits"][:, -1:]
    actual = {"logits": onnx_answer(graph, step)["logits"][1:]}
    rows = {"logits": torch.ones(1, 1, dtype=torch.bool)}
    return require_parity("onnx behind padding, within a window", actual, {"logits": expected}, rows, tolerance)


def _compare(
    graph: OnnxModel | Pieces, name: str, step: ProbeStep, actual: Answer, expected: Answer, tolerance: float
) -> Parity:
    """Logits and caches where the mask is 1."""
    real = step.mask.bool()
    names, caches = list(expected)[1:], tuple(expected.values())[1:]
    expected = expected | dict(zip(names, _as_cached(graph, caches, step.mask), strict=True))
    keys = real.sort(dim=1, descending=True)[0] if graph.compact else real
    rows = dict.fromkeys(expected, keys) | {"logits": real[:, -step.ids.shape[1] :]}
    return require_parity(name, actual, expected, rows, tolerance)


def _as_cached(
    graph: OnnxModel | Pieces, caches: tuple[torch.Tensor, ...], mask: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """torch's caches (batch, heads, tokens, size), which have a slot for padding, as the graph has them."""
    if not graph.compact:
        return caches
    order = mask.argsort(dim=1, descending=True, stable=True)[:, None, :, None]
    return tuple(each.take_along_dim(order, dim=2) for each in caches)


def _counts_positions(graph: OnnxModel) -> bool:
    """Whether real tokens are counted: as an input, or by the graph itself."""
    return graph.compact or "position_ids" in graph.shapes
