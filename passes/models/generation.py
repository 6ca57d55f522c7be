"""Generation with ``model.generate``, by settings that nothing of the model's own adds to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

__all__ = ["generated"]


@torch.no_grad()
def generated(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    settings: GenerationConfig,
    processors: Sequence[LogitsProcessor] = (),
) -> Any:
    """``model.generate``'s output, whatever the model's own generation config says."""
    with _generation_config(model, settings):
        return model.generate(**inputs, generation_config=settings, logits_processor=LogitsProcessorList(processors))


@contextmanager
def _generation_config(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """``generate`` fills what a config leaves open (forced tokens, n-gram bans) from the model's own: hide that one."""
    own = model.generation_config
    model.generation_config = copy.deepcopy(settings)
    try:
        yield
    finally:
        model.generation_config = own
