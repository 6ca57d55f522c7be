"""Two streams through one model: dense, and under the masks; what a projection reads and gives in both of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from passes.models import MaskedModel, base_model, module_at, parameter_at, replaced

ModelInputs = Mapping[str, Any]
"""The keyword arguments of one forward pass."""


@dataclass
class Sides:
    """The model as it is under its masks, and as it is dense: masks and adapter off, ``originals`` put back."""

    model: PreTrainedModel | PeftModel
    hooks: MaskedModel
    originals: dict[str, torch.Tensor]

    @contextmanager
    def dense(self) -> Iterator[None]:
        """The dense model, inside the block."""
        with ExitStack() as stack:
            stack.enter_context(self.hooks.off())
            stack.enter_context(replaced(self.model, self.originals))
            if isinstance(self.model, PeftModel):
                stack.enter_context(self.model.disable_adapter())
            yield

    def undo(self) -> None:
        """Give the model its original weights back for good."""
        for name, tensor in self.originals.items():
            parameter_at(self.model, name).data = tensor
        self.originals.clear()


@dataclass(frozen=True)
class TokenRows:
    """Of one batch, padding left out: what a projection reads under the masks [n, in], gives [n, out], and what is
    missing there of what it is to give [n, out]; this in fp32 where the model is in half precision.
    """

    inputs: torch.Tensor
    pruned: torch.Tensor
    missing: torch.Tensor

    @property
    def target(self) -> torch.Tensor:
        """What the projection is to give, [n, out]."""
        return wide(self.pruned) + self.missing

    def of(self, real: torch.Tensor | None) -> TokenRows:
        """Only the rows at these places [n]; None: all."""
        return self if real is None else TokenRows(self.inputs[real], self.pruned[real], self.missing[real])


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision as fp32, in which differences are taken."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def row_of(batch: ModelInputs) -> dict[str, Any]:
    """The first row of a batch, as a batch of its own."""
    return {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


class Streams(Protocol):
    """Calibration batches on their way through both sides."""

    def rows(self, module: str) -> Iterator[TokenRows]:
        """What a projection sees, a batch at a time. Modules are asked for in the order in which they run."""
        ...

    def outputs(self, batches: Sequence[ModelInputs]) -> Iterator[Mapping[str, Any]]:
        """What the model gives after the last projection; ``batches`` are the same, with labels if these are wanted."""
        ...


class Reached(Exception):  # noqa: N818 - nothing is wrong
    """Ends a forward pass early, once all that was wanted of it has been seen."""


def captured(module: nn.Module, run: Callable[[], object]) -> tuple[torch.Tensor, torch.Tensor]:
    """Run until ``module`` has run; what it read and what it gave, [rows, ...] flattened to two axes."""
    found: list[torch.Tensor] = []

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found.extend(tensor.detach().flatten(0, -2) for tensor in (inputs[0], output))
        raise Reached

    handle = module.register_forward_hook(hook)
    try:
        run()
    except Reached:
        pass
    finally:
        handle.remove()
    return found[0], found[1]


def real_rows(model: PreTrainedModel | PeftModel, batch: ModelInputs, module: str) -> torch.Tensor | None:
    """Which rows that a module reads are no padding, [rows] bool; None if all are."""
    base = base_model(model)
    mask = batch.get("attention_mask")
    if base.config.is_encoder_decoder and not _in_encoder(base, module):
        mask = batch.get("decoder_attention_mask")
        if mask is None and "labels" in batch:
            mask = batch["labels"] != -100
    return mask.bool().flatten() if mask is not None and mask.dim() == 2 else None


def real_places(model: PreTrainedModel | PeftModel, batch: ModelInputs, module: str) -> torch.Tensor | None:
    """Where the rows are that a module reads and that are no padding, [n]; None if all are. Waits for the device."""
    real = real_rows(model, batch, module)
    return None if real is None or bool(real.all()) else real.nonzero()[:, 0]


def _in_encoder(base: PreTrainedModel, module: str) -> bool:
    encoder: Any = base.get_encoder()
    return any(parent is encoder for parent in _parents(base, module))


def _parents(base: PreTrainedModel, module: str) -> Iterator[nn.Module]:
    parts = module.split(".")
    return (module_at(base, ".".join(parts[:n])) for n in range(1, len(parts)))


class WholeModel:
    """Runs the whole model up to the projection for each one: right for any structure, O(layers²) in time."""

    def __init__(self, sides: Sides, batches: Sequence[ModelInputs]) -> None:
        self._sides, self._batches = sides, batches

    def rows(self, module: str) -> Iterator[TokenRows]:
        """See Streams."""
        site = module_at(self._sides.model, module)
        for batch in self._batches:
            with self._sides.dense():
                _, dense = captured(site, partial(self._sides.model, **batch))
            inputs, pruned = captured(site, partial(self._sides.model, **batch))
            missing = wide(dense) - wide(pruned)
            yield TokenRows(inputs, pruned, missing).of(real_places(self._sides.model, batch, module))

    def outputs(self, batches: Sequence[ModelInputs]) -> Iterator[Mapping[str, Any]]:
        """See Streams."""
        return (self._sides.model(**batch) for batch in batches)
