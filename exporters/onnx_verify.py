"""Does an ONNX graph compute what the torch model computes? Prefill, decode, both paddings, chunks, one token."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import DynamicCache, PreTrainedModel

from exporters.onnx_options import DATA_FILE, input_names, past_names, present_names
from exporters.onnx_torch import cache_tensors, fill_cache
from passes.errors import PostconditionError
from passes.parity import Parity, relative_difference

logger = logging.getLogger(__name__)

PROBE_TOKENS = 11
LONGEST_WINDOW_PROBE = 256
"""Sliding windows up to this length are crossed by the probes; longer ones would make the check too expensive."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call: ``ids`` (batch, n), ``mask`` (batch, past + n), ``past`` key and value of each layer or nothing."""

    ids: torch.Tensor
    mask: torch.Tensor
    past: tuple[torch.Tensor, ...] = ()

    @property
    def positions(self) -> torch.Tensor:
        """Position of each new token, counted over real tokens; padding gets 0."""
        return (self.mask.cumsum(-1) - 1).clamp_min(0)[:, -self.ids.shape[1] :]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Logits (batch, n, vocabulary) and the cache after the step."""

    logits: torch.Tensor
    present: tuple[torch.Tensor, ...]


class OnnxModel:
    """An onnxruntime session on CPU, called with torch tensors."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would starve torch's
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = self.session.get_inputs()
        self.half = any("float16" in each.type for each in self.inputs)

    def __call__(self, step: Step) -> Answer:
        """Run one step; without a past, caches of length zero go in."""
        feeds = {"input_ids": step.ids, "attention_mask": step.mask, "position_ids": step.positions}
        pasts = step.past or self._empty_past(step.ids.shape[0])
        feeds |= dict(zip(past_names(len(pasts) // 2), pasts, strict=True))
        outputs = self.session.run(None, {name: self._array(value) for name, value in feeds.items()})
        logits, *present = (torch.from_numpy(np.asarray(each)).float() for each in outputs)
        return Answer(logits=logits, present=tuple(present))

    def _empty_past(self, batch: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros(batch, each.shape[1], 0, each.shape[3]) for each in self.inputs[3:])

    def _array(self, tensor: torch.Tensor) -> Any:
        return (tensor.half() if self.half and tensor.is_floating_point() else tensor).numpy()


def check_interface(path: Path, layers: int) -> int:
    """The graph is valid ONNX, and its inputs and outputs are exactly the promised ones with static KV heads.

    Returns the bytes that one token of one sequence adds to the cache.

    Raises ``PostconditionError``.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PostconditionError(f"export: onnx.checker refuses {path.name}: {error}") from error
    session = OnnxModel(path).session
    inputs, outputs = ([each.name for each in side] for side in (session.get_inputs(), session.get_outputs()))
    for what, actual, expected in (
        ("inputs", inputs, input_names(layers)),
        ("outputs", outputs, ["logits", *present_names(layers)]),
    ):
        if actual != expected:
            raise PostconditionError(f"export: the graph's {what} are {actual}, expected {expected}")
    for each in session.get_inputs()[3:]:
        if not isinstance(each.shape[1], int) or not isinstance(each.shape[3], int):
            raise PostconditionError(f"export: KV heads and head size of {each.name} are not static: {each.shape}")
    return sum(
        each.shape[1] * each.shape[3] * (2 if "float16" in each.type else 4) for each in session.get_inputs()[3:]
    )


@torch.no_grad()
def torch_answer(model: PreTrainedModel, step: Step) -> Answer:
    """What torch computes for the step."""
    cache = fill_cache(step.past) if step.past else DynamicCache()
    output = model(
        input_ids=step.ids,
        attention_mask=step.mask,
        position_ids=step.positions,
        past_key_values=cache,
        use_cache=True,
    )
    return Answer(
        logits=output.logits.float(), present=tuple(each.float() for each in cache_tensors(output.past_key_values))
    )


def verify_onnx(model: PreTrainedModel, path: Path, tolerance: float) -> tuple[Parity, ...]:
    """Compare the graph with an fp32 ``model`` in eval mode on CPU; return the parities, all within ``tolerance``.

    Raises ``PostconditionError`` naming the case, the first layer whose cache differs, and the number.
    """
    onnx_model = OnnxModel(path)
    parities = []
    for case, step in probe_steps(model):
        parity = _compare(f"onnx {case}", step, onnx_model(step), torch_answer(model, step), tolerance)
        logger.info("%s", parity)
        parities.append(parity)
    parities.append(_verify_chunks(model, onnx_model, tolerance))
    return tuple(parities)


def probe_steps(model: PreTrainedModel) -> Iterator[tuple[str, Step]]:
    """Named probes on random token ids; caches are torch's own."""
    ids = probe_ids(model, 3, probe_length(model))
    ones = torch.ones_like(ids)
    yield "prefill", Step(ids=ids[:2], mask=ones[:2])
    yield "single token, empty past", Step(ids=ids[:1, :1], mask=ones[:1, :1])
    yield "decode", _decode(model, ids, ones)
    left, right = ones.clone(), ones.clone()
    for row in range(1, 3):
        padding = min(2 * row, ids.shape[1] - 2)
        left[row, :padding], right[row, -padding:] = 0, 0
    yield "left padding", Step(ids=ids, mask=left)
    yield "left padding, decode", _decode(model, ids, left)
    yield "right padding", Step(ids=ids, mask=right)


def probe_length(model: PreTrainedModel) -> int:
    """Tokens of a probe: a few, or enough to cross the sliding window, and never past the model's context."""
    window = getattr(model.config, "sliding_window", None) or 0
    if window > LONGEST_WINDOW_PROBE:
        logger.info("the sliding window of %d tokens is longer than the probes; they do not cross it", window)
        window = 0
    context = getattr(model.config, "max_position_embeddings", None) or PROBE_TOKENS
    return max(4, min(max(PROBE_TOKENS, window + 4), context))


def probe_ids(model: PreTrainedModel, batch: int, tokens: int) -> torch.Tensor:
    """Random token ids (batch, tokens), always the same ones for the same vocabulary."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (batch, tokens), generator=generator)


def _decode(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> Step:
    """The last token of ``ids``, with torch's cache of the others."""
    before = torch_answer(model, Step(ids=ids[:, :-1], mask=mask[:, :-1]))
    return Step(ids=ids[:, -1:], mask=mask, past=before.present)


def _verify_chunks(model: PreTrainedModel, onnx_model: OnnxModel, tolerance: float) -> Parity:
    """The graph fed in three chunks with its own cache, the first of length zero, against one torch pass."""
    ids = probe_ids(model, 2, probe_length(model))
    ones, cut = torch.ones_like(ids), ids.shape[1] // 2
    past: tuple[torch.Tensor, ...] = ()
    pieces = []
    for start, end in ((0, cut), (cut, ids.shape[1] - 1), (ids.shape[1] - 1, ids.shape[1])):
        answer = onnx_model(Step(ids=ids[:, start:end], mask=ones[:, :end], past=past))
        past = answer.present
        pieces.append(answer.logits)
    whole = Step(ids=ids, mask=ones)
    actual = Answer(logits=torch.cat(pieces, dim=1), present=past)
    return _compare("onnx chunked prefill from an empty past", whole, actual, torch_answer(model, whole), tolerance)


def _compare(name: str, step: Step, actual: Answer, expected: Answer, tolerance: float) -> Parity:
    """Largest relative difference of logits and caches where the mask is 1."""
    real_queries = step.mask[:, -step.ids.shape[1] :].bool()
    logits = relative_difference(actual.logits[real_queries], expected.logits[real_queries])
    real_keys = step.mask.bool()
    caches = [
        relative_difference(ours.transpose(1, 2)[real_keys], theirs.transpose(1, 2)[real_keys])
        for ours, theirs in zip(actual.present, expected.present, strict=True)
    ]
    parity = Parity(name, max([logits, *caches], key=_nan_first), tolerance)
    if not parity.holds:
        raise PostconditionError(f"export: {parity}; {_culprit(caches, tolerance)} ({DATA_FILE} holds the weights)")
    return parity


def _nan_first(value: float) -> float:
    return float("inf") if value != value else value


def _culprit(caches: list[float], tolerance: float) -> str:
    for index, value in enumerate(caches):
        if not value <= tolerance:
            part = ("key", "value")[index % 2]
            layer = index // 2
            return f"the first difference is in present.{layer}.{part}, so at or before layer {layer}'s attention"
    return "all caches agree, so the difference arises in the last layer, the final norm or the head"
