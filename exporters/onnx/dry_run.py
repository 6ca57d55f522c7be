"""What torch.onnx refuses of a class, asked of a small random model of it before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from exporters.onnx.seq2seq import cached_sample
from exporters.onnx.torch_caches import flat_shapes
from passes.discovery import small_model
from passes.errors import UnsupportedModelError
from passes.families import family_named
from passes.models import Probe, Task, has_own_sizes, respond, task_of

COMPLEX = (torch.polar, torch.complex, torch.view_as_complex)
"""What makes complex numbers of which torch.onnx has only a few operations (the ones of ``torch.fft`` it has)."""

CACHED: dict[Task, Callable[[PreTrainedModel], object]] = {
    Task.CAUSAL_LM: flat_shapes,
    Task.SEQ2SEQ_LM: cached_sample,
}
"""What refuses a model whose cache graphs cannot have."""


class _Complex(TorchFunctionMode):
    """Notes whether complex numbers are made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.made = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.made |= func in COMPLEX
        return func(*args, **(kwargs or {}))


def why_not_torch(model: PreTrainedModel) -> str | None:
    """Why torch.onnx makes no graph of a discovered class that the export would find out after all work, or None.

    What lpc describes is exported by its tests, where it is a decoder; of a compact model the source was asked.
    """
    family, config = family_named(model.config.model_type), model.config
    cached = getattr(config, "is_decoder", True) or task_of(model) is not Task.CAUSAL_LM
    described = family is None or (family.proof is None and cached)
    if described or has_own_sizes(config):
        return None
    try:
        _, small = small_model(type(model), config)
    except UnsupportedModelError:
        return None  # it ran when it was discovered, and so with other sizes
    name = type(model).__name__
    with _Complex() as numbers:
        try:
            if task_of(model) in CACHED:
                CACHED[task_of(model)](small)
            respond(small, Probe.of(small))
        except UnsupportedModelError as error:
            return str(error)
    if numbers.made:
        return f"{name} computes with complex numbers (its rotary embedding), of which torch.onnx has no operations"
    return None
