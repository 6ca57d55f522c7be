"""The head of a language model by itself: logits of some positions at a time, never of a whole batch."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from passes.models.base import base_model, evaluation_mode
from passes.models.parity import relative_difference, rounding_tolerance
from passes.models.probe import Probe
from passes.models.tasks import Task, task_of

logger = logging.getLogger(__name__)

CHUNK_ELEMENTS = 1 << 23
"""Logits that are held at a time."""

IGNORED = -100
TASKS = (Task.CAUSAL_LM, Task.MASKED_LM)
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a forward pass may raise that is run in a way that its class does not allow."""


@dataclass
class Seen:
    """What a backbone answered inside ``TokenHead.apart``."""

    hidden: torch.Tensor | None = None

    @property
    def states(self) -> torch.Tensor:
        """Its last hidden states [rows, tokens, width], with their history."""
        assert self.hidden is not None
        return self.hidden


class TokenHead:
    """What a language model does behind its backbone, on any hidden states: projection, bias, scale, softcapping.

    It is the model's own ``forward`` with an answer put in the place of its backbone's, so nothing of it is described
    for a model type. Whether that gives the model's logits and its loss is tried on a probe (``of``).
    """

    def __init__(self, model: PreTrainedModel, backbone: nn.Module, answer: ModelOutput) -> None:
        self._model, self._backbone, self._kind = model, backbone, type(answer)
        self._path = next(path for path, module in model.named_modules() if module is backbone)
        self.task = task_of(model)
        self.words = 1
        """Logits of a position."""
        self.divides = False
        """Whether the model's loss is the sum over ``num_items_in_batch`` where that is given."""

    @classmethod
    def of(cls, model: PreTrainedModel | PeftModel) -> TokenHead | None:
        """The head of a model; None where its logits or its loss are not those of each position by itself.

        The loss is the cross-entropy of the labels. The model comes back in its modes.
        """
        base = base_model(model)
        if not isinstance(base, PreTrainedModel) or task_of(base) not in TASKS:
            return None
        parameter = next(p for p in base.parameters() if p.is_floating_point())
        inputs = Probe.of(base).on(parameter.device, parameter.dtype)
        with evaluation_mode(base), torch.no_grad():
            try:
                return cls._proven(base, inputs, rounding_tolerance(parameter.dtype))
            except FAILURES as error:
                logger.debug("%s has no head by itself: %s", type(base).__name__, error)
                return None

    @classmethod
    def _proven(cls, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], tolerance: float) -> TokenHead | None:
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED)
        labels[:, :3] = IGNORED
        found = _backbone_of(model, {**inputs, "labels": labels})
        if found is None:
            return None
        head, whole = cls(model, *found[:2]), found[2]
        with head.apart() as seen:
            model(**inputs)
        head.words = whole["logits"].shape[-1]
        real = inputs["attention_mask"].bool()
        chosen, targets = labelled(head.task, labels)
        loss = head.losses(seen.states[chosen], targets).sum()
        parts = [relative_difference(head.logits(seen.states[real]), whole["logits"][real])]
        parts.append(relative_difference(loss / len(targets), whole["loss"]))
        if any(each.kind is each.VAR_KEYWORD for each in inspect.signature(type(model).forward).parameters.values()):
            divided = model(**inputs, labels=labels, num_items_in_batch=7)["loss"]
            head.divides = relative_difference(loss / 7, divided) <= tolerance
        return head if all(part <= tolerance for part in parts) else None

    @contextmanager
    def apart(self) -> Iterator[Seen]:
        """The model's forward pass gives its backbone's last hidden states, and logits of first positions alone."""
        seen = Seen()

        def keep(_: nn.Module, __: Any, output: ModelOutput) -> ModelOutput:
            seen.hidden = output["last_hidden_state"]
            first = seen.states[:, :1].contiguous()  # else torch multiplies with a copy of the head for every row
            return type(output)(**{**output, "last_hidden_state": first})

        handle = self._backbone.register_forward_hook(keep)
        try:
            yield seen
        finally:
            handle.remove()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's logits [positions, words] for last hidden states [positions, width]."""
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        with _answering(self._backbone, self._kind(last_hidden_state=hidden[None])):
            return cast(torch.Tensor, self._model(input_ids=ids)["logits"][0])

    @property
    def chunk(self) -> int:
        """Positions whose logits are held at a time."""
        return max(1, CHUNK_ELEMENTS // self.words)

    @property
    def _parameters(self) -> Iterator[nn.Parameter]:
        """Those behind the backbone, tied ones as well."""
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            if not name.startswith(f"{self._path}."):
                yield parameter

    def reads(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether one of these parameters is in it."""
        own = {id(parameter) for parameter in self._parameters}
        return any(id(parameter) in own for parameter in parameters)

    @property
    def trains(self) -> bool:
        """Whether a parameter in it wants a gradient, which comes from all positions together."""
        return any(parameter.requires_grad for parameter in self._parameters)

    @torch.no_grad()
    def losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The cross-entropy [positions] of targets [positions], fp32, from hidden states [positions, width]."""
        return self.measured(hidden, targets)[0]

    @torch.no_grad()
    def measured(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The cross-entropy of each target, and whether the largest logit is its own; [positions] each."""
        return _in_chunks(hidden, targets, self.chunk, self.logits)


@torch.no_grad()
def scored_logits(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Likewise, from logits [positions, words]; of their fp32 copies a few rows are there at a time."""
    return _in_chunks(logits, targets, max(1, CHUNK_ELEMENTS // logits.shape[-1]), lambda rows: rows)


def _in_chunks(
    rows: torch.Tensor, targets: torch.Tensor, size: int, logits_of: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    losses, right = [rows.new_zeros(0, dtype=torch.float32)], [targets.new_zeros(0, dtype=torch.bool)]
    for some, wanted in zip(torch.split(rows, size), torch.split(targets, size), strict=True):
        logits = logits_of(some).float()
        losses.append(cross_entropy(logits, wanted, reduction="none"))
        right.append(_largest(logits, wanted))
    return torch.cat(losses), torch.cat(right)


def _largest(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Whether ``argmax`` of each row is the wanted one. A processor finds a maximum much faster than its place."""
    found = logits.gather(1, wanted[:, None])[:, 0] == logits.amax(1)
    places = found.nonzero()[:, 0]
    found[places] = logits[places].argmax(1) == wanted[places]
    return found


def label_losses(
    model: PreTrainedModel | PeftModel, inputs: Mapping[str, Any], labels: torch.Tensor, head: TokenHead
) -> tuple[torch.Tensor, torch.Tensor]:
    """Likewise, of the labels [rows, tokens] that count, from a model's inputs without them."""
    with torch.no_grad(), head.apart() as seen:
        model(**inputs)
    chosen, targets = labelled(head.task, labels)
    return head.measured(seen.states[chosen], targets)


def labelled(task: Task, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which positions [rows, tokens] predict a label, and those labels [positions], in order."""
    wanted = pad(labels[:, 1:], (0, 1), value=IGNORED) if task is Task.CAUSAL_LM else labels
    chosen = wanted != IGNORED
    return chosen, wanted[chosen]


def _backbone_of(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]
) -> tuple[nn.Module, ModelOutput, Mapping[str, torch.Tensor]] | None:
    """The module whose hidden states the head reads, what it answers, and the whole model's outputs."""
    inner = model.base_model
    places = [inner, getattr(inner, "decoder", None)] if inner is not model else []
    called: list[tuple[nn.Module, Any]] = []
    handles = [
        place.register_forward_hook(lambda module, _, output: called.append((module, output)))
        for place in places
        if isinstance(place, nn.Module)
    ]
    try:
        whole = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    # a module is called before what is inside it, and answers after it
    if not called or not isinstance(called[-1][1], ModelOutput) or "last_hidden_state" not in called[-1][1]:
        return None
    return *called[-1], whole


@contextmanager
def _answering(module: nn.Module, output: ModelOutput) -> Iterator[None]:
    """The module gives this output, whatever it is asked, inside the block."""
    was = module.__dict__.get("forward")
    module.__dict__["forward"] = lambda *_, **__: output
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if was is not None:
            module.__dict__["forward"] = was
