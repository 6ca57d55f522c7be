"""Training a language model without the logits of a whole batch, wherever its head can be run by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from passes.models import HOST_TOKENS, TokenHead, base_model, labelled, lean_loss, pieces, task_of
from passes.ranks import count, sharded
from passes.tuning.positions import Logits, Mixture, Side, summed_loss
from passes.tuning.rates import RatedTrainer


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The positions of a batch that bear a label: their last hidden states [positions, width], and the labels."""

    hidden: torch.Tensor
    targets: torch.Tensor
    outputs: Mapping[str, Any]


def labelled_states(
    head: TokenHead, model: Callable[..., Any], inputs: Mapping[str, Any], labels: torch.Tensor
) -> Labelled:
    """What a model answers to inputs without labels, up to its head, where labels stand."""
    with head.apart() as seen:
        outputs: Mapping[str, Any] = model(**inputs)
    chosen, targets = labelled(head.task, labels)
    return Labelled(hidden=seen.states[chosen], targets=targets, outputs=outputs)


class LeanTrainer(RatedTrainer):
    """A Trainer that computes the loss of a language model from hidden states, some positions at a time.

    ``in_pieces``: on a processor a batch is run ``HOST_TOKENS`` at a time, where its loss is that of each position by
    itself: as fast, with the activations of a piece in memory in place of the batch's.
    """

    def __init__(self, *, in_pieces: bool = True, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._in_pieces = in_pieces
        self._heads: dict[int, TokenHead | None] = {}

    def head_of(self, model: PreTrainedModel | PeftModel) -> TokenHead | None:
        """The head of a transformers model by itself, found once; None where the whole logits are needed.

        Sharded weights are there only while the whole model runs.
        """
        if sharded():
            return None
        if id(model) not in self._heads:
            self._heads[id(model)] = TokenHead.of(model)
        head = self._heads[id(model)]
        return None if head is None or head.trains else head

    def logits_of(self, head: TokenHead) -> Logits:
        """The head in the precision of the training."""

        def logits(hidden: torch.Tensor) -> torch.Tensor:
            with self.accelerator.autocast():
                return head.logits(hidden)

        return logits

    def side(self, head: TokenHead, hidden: torch.Tensor) -> Side:
        """Hidden states with their head."""
        return Side(hidden=hidden, logits=self.logits_of(head), chunk=head.chunk)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of a batch; its loss."""
        parts = self._pieces(inputs) if num_items_in_batch is not None else [inputs]
        step = partial(super().training_step, model, num_items_in_batch=num_items_in_batch)
        return torch.stack([step(inputs=part) for part in parts]).sum()

    def _pieces(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The batch in what is run at a time: whole, but where the sum over the pieces is what it gives."""
        base = base_model(self.model)
        divided = self._in_pieces and self.args.device.type == "cpu" and count() == 1 and self.model_accepts_loss_kwargs
        head = self.head_of(base) if divided else None
        fits = head is not None and head.divides and has_labels(head, inputs)
        return pieces(inputs, task_of(base), HOST_TOKENS) if fits else [inputs]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's own loss."""
        base = base_model(self.model)
        head = None if return_outputs else self.head_of(base)
        if head is None or not has_labels(head, inputs):
            with lean_loss(base):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        found = labelled_states(head, model, without(inputs, task_of(base).label_names), inputs["labels"])
        count = len(found.targets)
        mixture = Mixture(label=self.label_part(head, count, num_items_in_batch))
        loss = summed_loss(self.side(head, found.hidden), found.targets, mixture)
        return loss * self.position_share(count, num_items_in_batch)

    def label_part(self, head: TokenHead, positions: int, items: torch.Tensor | int | None) -> float:
        """How much a position's cross-entropy weighs beside ``position_share``, as the model itself has it.

        A model that does not heed the number of labels of the whole batch gives the mean over its own.
        """
        if head.divides or not self.model_accepts_loss_kwargs or items is None:
            return 1.0
        return float(items) / positions

    def position_share(self, positions: int, items: torch.Tensor | int | None) -> torch.Tensor | float:
        """The weight of each position in the mean over the whole batch, as the task loss has it.

        Where the model does not take the number of labels of the whole batch, the mean is the micro-batch's, and the
        Trainer divides afterwards.
        """
        if self.model_accepts_loss_kwargs and items is not None:
            return (self.accelerator.num_processes if self.args.average_tokens_across_devices else 1) / items
        return 1.0 / positions


def has_labels(head: TokenHead, inputs: Mapping[str, Any]) -> bool:
    """Whether a position bears a label; what the mean over none is, the model itself has to say."""
    return "labels" in inputs and bool(labelled(head.task, inputs["labels"])[0].any())


def without(inputs: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The inputs but those of these names."""
    return {name: value for name, value in inputs.items() if name not in names}
